"""A header task raises `Ignore`, or rejects its message, and its chord waits for ever.

For a task that ends so the tracer stores no result and returns no part (a rejection without
requeueing: up to 5.6). The rest of its chain never runs, either. Here it counts with the ready
state that it stored itself, otherwise as failed. Left alone is who runs again under its id: a
task that replaced itself, or sent itself once more. Unreported upstream;
for the rejection see https://github.com/celery/celery/issues/4222
"""

from __future__ import annotations

import logging
from typing import Any

from celery import states
from celery._state import get_current_task
from celery.exceptions import Ignore

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...engine.versions import celery_5_7
from ...lifecycle import counting
from ...lifecycle.failing import fail_chained, is_awaited
from ...upstream import backends
from ...upstream.results import read_results

logger = logging.getLogger("chordguard")

patch = Patch(
    "ignored_members",
    Defect("A10", "a header task raises Ignore: the chord hangs"),
    backends=(REDIS, SQL, DJANGO),
)

#: Set on the request of a task that runs again under its id.
_RUNS_AGAIN = "_chordguard_runs_again"


def app_of_task(instance: Any, args: tuple[Any, ...]) -> Any:
    return getattr(args[0], "app", None) if args else None


@patch.wraps(
    "celery.app.trace", "TraceInfo.handle_ignore", app_of=app_of_task, takes={"task": 0, "req": 1}
)
def handle_ignore(wrapped: Any, info: Any, args: Any, kwargs: Any, *, task: Any, req: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    # A copy of a message may be ignored because another one is at work: that one counts.
    _end(task, req, info.retval, is_copy=_is_redelivered(req))
    return handled


@patch.wraps(
    "celery.app.trace",
    "TraceInfo.handle_reject",
    app_of=app_of_task,
    until=celery_5_7,
    takes={"task": 0, "req": 1},
)
def handle_reject(wrapped: Any, info: Any, args: Any, kwargs: Any, *, task: Any, req: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    if not getattr(info.retval, "requeue", False):
        _end(task, req, info.retval)
    return handled


@patch.wraps("celery.app.task", "Task.replace")
def replace(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Ignore:
        setattr(task.request, _RUNS_AGAIN, True)
        raise


@patch.wraps("celery.app.base", "Celery.send_task", app_of=lambda app, _: app)
def send_task(wrapped: Any, app: Any, args: Any, kwargs: Any) -> Any:
    sent = wrapped(*args, **kwargs)
    running = get_current_task()
    if running is not None and running.request.id == sent.id:
        setattr(running.request, _RUNS_AGAIN, True)
    return sent


def _end(task: Any, request: Any, exc: Any, is_copy: bool = False) -> None:
    """Count a member that ended without a result; fail what is chained after it."""
    if request.is_eager or getattr(request, _RUNS_AGAIN, False):
        return
    backend = task.backend
    if not backends.capabilities(backend).keeps_ledger or not is_awaited(request):
        return
    stored = read_results(backend, [request.id]).get(request.id)
    state, result = states.FAILURE, exc
    if stored is not None and stored.is_ready:
        state, result = stored.state, stored.value
    elif is_copy:
        logger.warning(
            "Task %s, a member of a chord, was delivered again and ignored: unless it gets a "
            "result, its chord is settled after chord_timeout",
            request.id,
        )
        return
    elif not _is_forgotten(task, request):
        backend.store_result(request.id, exc, states.FAILURE, request=request)
    if request.chord:
        backend.on_chord_part_return(request, state, result)
    fail_chained(backend, request, exc)


def _is_redelivered(request: Any) -> bool:
    return bool((request.delivery_info or {}).get("redelivered"))


def _is_forgotten(task: Any, request: Any) -> bool:
    """Tell whether Celery would not store a failure of the task."""
    return counting.is_ignored(task.app, request) and not task.store_errors_even_if_ignored
