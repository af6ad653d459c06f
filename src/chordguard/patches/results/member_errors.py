"""`get()` of a failed chord raises the member's error, or the ChordError, as chance has it.

`AsyncResult.get` asks the parents of a result for an error before it waits and between two looks
at the result. When a member fails and the chord ends within one such pause, it finds the result
of the body first and raises the ChordError, so that `except MyError` around `get()` misses. Celery
alone hits that window rarely, since it polls chords slowly; a chord that is counted ends within
milliseconds. Here the parents are asked once more before the error of the body is raised.
Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from celery import states

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...lifecycle.waiting import app_of_waiting
from ...upstream import backends

patch = Patch(
    "member_errors",
    Defect("A18", "get() raises a ChordError instead of the member's error now and then"),
    backends=(REDIS, SQL, DJANGO),
)


@patch.wraps("celery.result", "AsyncResult.get", app_of=app_of_waiting)
@patch.wraps("celery.result", "AsyncResult.wait", app_of=app_of_waiting)
def get(wrapped: Any, result: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    except Exception:
        if _has_failed(result) and _follows_parents(*args, **kwargs):
            result._maybe_reraise_parent_error()
        raise


def _has_failed(result: Any) -> bool:
    """Tell whether the error is the one that was stored, not one of waiting."""
    cache = result._cache
    is_failed = cache is not None and cache["status"] in states.PROPAGATE_STATES
    return is_failed and backends.capabilities(result.backend).keeps_ledger


def _follows_parents(
    timeout: Any = None,
    propagate: bool = True,
    interval: Any = None,
    no_ack: bool = True,
    follow_parents: bool = True,
    *_: Any,
    **__: Any,
) -> bool:
    return propagate and follow_parents
