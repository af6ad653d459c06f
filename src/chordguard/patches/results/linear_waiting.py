"""`get()` on a chord reads every unfinished member's result again on every event.

`AsyncResult.get` asks all parents for an error on each interval, and for a chord these are
all members of the header: waiting costs the square of their number. Here one watch stands
for all parents; it reads them in bulk and relies on announced results where the backend
announces them. Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from ... import backends
from ..._patch import Patch
from ...waiting import ParentsWatch

patch = Patch(
    name="linear_waiting",
    defects=("C8",),
    symptom="waiting for a large chord makes it many times slower",
)

#: The watch of a result that somebody waits for.
_WATCH = "_chordguard_watch"


@patch.wraps("celery.result", "AsyncResult._parents")
def parents(wrapped: Any, result: Any, args: Any, kwargs: Any) -> Any:
    nodes = list(wrapped(*args, **kwargs))
    backend = result.backend
    if not nodes or not (backends.is_redis(backend) or backends.is_database(backend)):
        return nodes
    watch = getattr(result, _WATCH, None)
    if watch is None or not watch.stands_for(nodes):
        watch = ParentsWatch(backend, nodes)
        setattr(result, _WATCH, watch)
    return [watch]
