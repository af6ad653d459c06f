"""A member with `ignore_result=True` hangs a chord that is polled, or fails one that is counted.

Celery stores nothing of it, nor, when it is a step of a chain and fails, of the steps that never
run: `celery.chord_unlock` waits for a result that never comes. Where the counter of a key-value
store counts, the last member waits `result_chord_join_timeout` for it, and fails the chord. Where
no ledger keeps the result, it is stored here when the part is returned, and forgotten when the
chord has ended.
https://github.com/celery/celery/issues/1857
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import states

from ...engine.patch import COUNTING, POLLED, SQL, Defect, Patch
from ...engine.versions import celery_5_5
from ...ledger.access import ledger_beside
from ...lifecycle import counting
from ...lifecycle.polling import Poll
from ...log import warn_once
from ...upstream import backends
from ...upstream.results import (
    KEPT_FOR_CHORD,
    chunks,
    forget_results,
    ready_states,
    select,
)

patch = Patch(
    "ignored_results",
    Defect("B9", "a header task with ignore_result hangs or fails a chord without a ledger"),
    backends=(SQL, POLLED, COUNTING),
)

_PART = {"request": 0, "state": 1, "result": 2}


@patch.wraps("celery.backends.base", "Backend.on_chord_part_return", takes=_PART)
@patch.wraps("celery.backends.base", "BaseKeyValueStoreBackend.on_chord_part_return", takes=_PART)
@patch.wraps(
    "celery.backends.gcs", "GCSBackend.on_chord_part_return", takes=_PART, since=celery_5_5
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    if _is_member(request) and _reads_results(backend):
        is_ignored = counting.is_ignored(backend.app, request)
        is_missing = is_ignored or state in states.PROPAGATE_STATES
        if is_missing and not _is_kept(backend, request, is_ignored):
            mark = KEPT_FOR_CHORD if is_ignored else None
            backend.store_result(request.id, result, state, traceback=mark, request=request)
    return wrapped(*args, **kwargs)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    # One that is polled again raises Retry.
    ended = wrapped(*args, **{**kwargs, "GroupResult": poll.group_result})
    _forget(poll)
    return ended


def _is_member(request: Any) -> bool:
    return request is not None and bool(request.chord and request.group and request.id)


def _reads_results(backend: Any) -> bool:
    """Tell whether a chord is ended there with what its members have stored."""
    can = backends.capabilities(backend)
    return can.polls or can.increments


def _is_kept(backend: Any, request: Any, is_ignored: bool) -> bool:
    """Tell whether the result of a part is stored, or the ledger keeps it when it is counted."""
    if counting.is_counted(request):
        return True
    try:
        ledger = ledger_beside(backend) if is_ignored else None
        if ledger is not None and ledger.has(request.group):
            return True
        return request.id in ready_states(backend, [request.id])
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot read whether the result of %s is stored", request.id)
        return not is_ignored


def _forget(poll: Poll) -> None:
    """Delete the results that were stored for a chord alone."""
    backend = poll.app.backend
    try:
        forget_results(backend, poll.spare)
        if backends.is_database(backend):
            _forget_rows(backend, poll.header.ids)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Could not delete the ignored results of chord %s; they expire by themselves",
            poll.group_id,
        )


def _forget_rows(backend: Any, task_ids: Sequence[str]) -> None:
    task = backend.task_cls
    for chunk in chunks(task_ids):
        # Not an equation, which some databases do not know for long texts.
        is_marked = task.task_id.in_(chunk) & task.traceback.like(KEPT_FOR_CHORD)
        marked = [id_ for (id_,) in select(backend, (task.task_id,), is_marked)]
        forget_results(backend, marked)
