"""The errback of a chord is called once more for each header task that fails (opt-in).

With ``task_allow_error_cb_on_chord_header`` `_chord.link_error` links a copy of the errback to
each task of the header, beside the body's. Here a copy is left to the chord, which calls it once,
if it fails. Errbacks that a header task has of its own are called as always. Celery documents the
calls for header tasks, so this acts only with ``chord_fix_header_errbacks = True``.
https://github.com/celery/celery/issues/3709
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...engine.versions import celery_5_3
from ...lifecycle.errbacks import left_to_chord
from ...upstream import backends

patch = Patch(
    "header_errbacks",
    Defect(
        "A8",
        "an errback is called for each failed header task, and once more for the chord",
        since=celery_5_3,
    ),
    is_opt_in=True,
    backends=(REDIS, SQL, DJANGO),
)


@patch.wraps("celery.backends.base", "Backend._call_task_errbacks", takes={"request": 0})
def call_task_errbacks(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any) -> Any:
    left = left_to_chord(request) if backends.capabilities(backend).keeps_ledger else []
    if not left:
        return wrapped(*args, **kwargs)
    errbacks = request.errbacks
    request.errbacks = [errback for errback in errbacks if errback not in left]
    try:
        return wrapped(*args, **kwargs)
    finally:
        request.errbacks = errbacks
