"""Django: a member with `ignore_result=True` loses its chord without a word.

Celery stores nothing of it. When django-celery-results has counted all members it looks whether all
have a result, after it has deleted the counter: it does nothing then, and nobody looks again. Where
the ledger does not keep the result, it is stored here when the part is returned, and expires like
others.
"""

from __future__ import annotations

from typing import Any

from celery import states

from ...engine.patch import Defect, Patch
from ...lifecycle import counting
from ...log import warn_once
from ...upstream.results import KEPT_FOR_CHORD, ready_states

patch = Patch(
    "django_ignored_results",
    Defect("J5", "Django: a header task with ignore_result: the body never runs, no log line"),
    driver="django_celery_results",
)


@patch.wraps(
    "django_celery_results.backends.database",
    "DatabaseBackend.on_chord_part_return",
    takes={"request": 0, "state": 1, "result": 2},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    if request.chord and request.id and not counting.is_counted(request):
        is_ignored = counting.is_ignored(backend.app, request)
        is_missing = is_ignored or state in states.PROPAGATE_STATES
        if is_missing and not _is_stored(backend, request):
            mark = KEPT_FOR_CHORD if is_ignored else None
            backend.store_result(request.id, result, state, traceback=mark, request=request)
    return wrapped(*args, **kwargs)


def _is_stored(backend: Any, request: Any) -> bool:
    try:
        return request.id in ready_states(backend, [request.id])
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot read whether the result of %s is stored", request.id)
        return False
