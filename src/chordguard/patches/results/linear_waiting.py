"""`get()` on a chord reads every unfinished member's result again on every event.

`AsyncResult.get` asks all parents for an error on each interval, and for a chord these are
all members of the header: waiting costs the square of their number. Here one watch stands
for all parents; it reads them in bulk and relies on announced results where the backend
announces them. Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...lifecycle.waiting import ParentsWatch, app_of_waiting
from ...upstream import backends

patch = Patch(
    "linear_waiting",
    Defect("C8", "waiting for a large chord makes it many times slower"),
    backends=(REDIS, SQL, DJANGO),
)


@patch.wraps("celery.result", "AsyncResult.get", app_of=app_of_waiting)
@patch.wraps("celery.result", "AsyncResult.wait", app_of=app_of_waiting)
def get(wrapped: Any, result: Any, args: Any, kwargs: Any) -> Any:
    parents = list(result._parents())
    if not parents or not backends.capabilities(result.backend).keeps_ledger:
        return wrapped(*args, **kwargs)
    watch = ParentsWatch(result, parents)
    # `get` asks for the parents on every interval; while it runs it finds the watch alone.
    result._parents = watch.in_place_of_parents
    try:
        return wrapped(*args, **kwargs)
    finally:
        vars(result).pop("_parents", None)
        watch.stop()
