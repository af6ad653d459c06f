"""One failed header task keeps the body from running (Redis).

The worker that returns the last part collects the results in
`RedisBackend.on_chord_part_return` and gives up at the first failed one; for a header with
nested results it does so even where `_unpack_chord_result` was replaced. Counting,
publishing and cleaning up stay Celery's: only the join is ours, and it applies the chord's
policy. https://github.com/celery/celery/issues/1881
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ... import backends, completion
from ..._patch import Patch
from ...policy import Policy, tolerates

patch = Patch(
    name="tolerant_parts",
    defects={
        "A1": "Redis: one failing header task and the body never runs",
        "A1b": "Redis: the same for nested groups, where _unpack_chord_result was replaced, too",
    },
    driver="redis",
)

#: The chord whose part is being returned in this context, where it is a tolerant one.
_returning: ContextVar[TolerantHeader | None] = ContextVar("chordguard_returning", default=None)


class TolerantHeader:
    """Takes the place of the saved GroupResult that Celery joins when a chord is complete."""

    supports_native_join = True

    def __init__(self, backend: Any, request: Any) -> None:
        self.backend = backend
        self.group_id = request.group
        self.body = request.chord
        self.saved: Any = None

    def on_ready(self) -> None:
        """Do nothing: Celery marks a saved GroupResult as ready before it joins it."""

    def join_native(self, timeout: float | None = None, propagate: bool = True) -> list[Any]:
        """Return what the body gets; ChordError when more failed than is tolerated."""
        parts = self._parts()
        results = {part.task_id: part for part in parts}
        if self.saved is None:
            header = [part.task_id for part in parts]
        else:
            header = completion.header_of(self.saved.results)
            missing = [id_ for id_ in completion.leaf_ids(header) if id_ not in results]
            results.update(backends.read_results(self.backend, missing))
        return completion.collect(header, results, Policy.of(self.backend.app, self.body))

    def _parts(self) -> list[backends.StoredResult]:
        """Read the returned parts, in header order, from Celery's key `.j`."""
        backend = self.backend
        key = backend.get_key_for_group(self.group_id, ".j")
        client = backend.client
        read = client.zrange if backend._chord_zset else client.lrange
        parts = (backend.decode(part) for part in read(key, 0, -1))
        return [backends.StoredResult(id_, state, value) for _, id_, state, value in parts]


@patch.wraps("celery.backends.redis", "RedisBackend.on_chord_part_return")
def on_chord_part_return(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    request = args[0] if args else kwargs["request"]
    header = None
    if request.group and tolerates(backend.app, request.chord):
        header = TolerantHeader(backend, request)
    # A failing chord may return a part of the chord around it: that one asks for itself.
    token = _returning.set(header)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _returning.reset(token)


@patch.wraps("celery.backends.redis", "RedisBackend.restore_group")
def restore_group(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    saved = wrapped(*args, **kwargs)
    header = _returning.get()
    group_id = args[0] if args else kwargs["group_id"]
    if header is None or header.group_id != group_id:
        return saved
    header.saved = saved
    return header
