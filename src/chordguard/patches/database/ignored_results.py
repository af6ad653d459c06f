"""A member with `ignore_result=True` hangs a chord that is polled.

Celery stores nothing of it, nor, when it is a step of a chain and fails, of the steps that never
run: `celery.chord_unlock` waits for a row that never comes. Where no ledger keeps the result, it is
stored here when the part is returned, and forgotten when the poller has ended the chord.
https://github.com/celery/celery/issues/1857
"""

from __future__ import annotations

from typing import Any

from celery import states

from ...engine.patch import Defect, Patch
from ...ledger.access import ledger_beside
from ...lifecycle import counting
from ...lifecycle.polling import Poll
from ...log import warn_once
from ...upstream.results import chunks, forget_results, ready_states, select

patch = Patch(
    "ignored_results",
    Defect("B9", "SQL: a header task with ignore_result hangs a chord that is polled"),
    driver="sqlalchemy",
)

#: Stands in the place of the traceback in the row of a result that is there for its chord alone.
MARK = "chordguard: kept until its chord ends"


@patch.wraps(
    "celery.backends.database",
    "DatabaseBackend.on_chord_part_return",
    takes={"request": 0, "state": 1, "result": 2},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    if request.chord and request.id:
        is_ignored = counting.is_ignored(backend.app, request)
        is_missing = is_ignored or state in states.PROPAGATE_STATES
        if is_missing and not _is_kept(backend, request, is_ignored):
            mark = MARK if is_ignored else None
            backend.store_result(request.id, result, state, traceback=mark, request=request)
    return wrapped(*args, **kwargs)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    # One that is polled again raises Retry.
    ended = wrapped(*args, **kwargs)
    if Poll.is_ours(task, kwargs):
        _forget(Poll.of(task, args, kwargs))
    return ended


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
    task = backend.task_cls
    try:
        for chunk in chunks(poll.header.ids):
            # Not an equation, which some databases do not know for long texts.
            is_marked = task.task_id.in_(chunk) & task.traceback.like(MARK)
            marked = [id_ for (id_,) in select(backend, (task.task_id,), is_marked)]
            forget_results(backend, marked)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Could not delete the ignored results of chord %s; they expire by themselves",
            poll.group_id,
        )
