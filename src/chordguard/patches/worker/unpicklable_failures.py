"""A header task whose exception cannot be pickled counts as two members (to 5.2).

The pool child stores the failure and returns its part. Then `TraceInfo._log_error` puts the
unpicklable exception back into what is sent to the main process, the pool cannot send it, and
the main process fails the task once more: on Redis the chord runs its body one member early,
on SQL the error is replaced by a MaybeEncodingError. Here what is sent stays picklable, as
from 5.3 on.
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_3

patch = Patch(
    "unpicklable_failures",
    Defect(
        "A1",
        "a header task with an unpicklable exception counts twice: the body runs early",
        until=celery_5_3,
    ),
)


def app_of_task(instance: Any, args: tuple[Any, ...]) -> Any:
    return getattr(args[0], "app", None) if args else None


@patch.wraps("celery.app.trace", "TraceInfo._log_error", app_of=app_of_task, takes={"einfo": 2})
def log_error(wrapped: Any, info: Any, args: Any, kwargs: Any, *, einfo: Any) -> Any:
    from celery.utils.serialization import get_pickleable_exception

    logged = wrapped(*args, **kwargs)
    einfo.exception = get_pickleable_exception(einfo.exception)
    return logged
