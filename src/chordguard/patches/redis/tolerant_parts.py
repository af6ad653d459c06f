"""One failed header task keeps the body from running (Redis).

The worker that returns the last part collects the results in
`RedisBackend.on_chord_part_return` and gives up at the first failed one; for a header with
nested results it does so even where `_unpack_chord_result` was replaced. Up to 5.6 it leaves the
chord's size behind when the chord fails: a part that comes twice, as that of a member killed at
its hard time limit does, fails it again. Counting and publishing stay Celery's: the join is ours,
and applies the chord's policy. https://github.com/celery/celery/issues/1881
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery.canvas import maybe_signature

from ... import backends, completion, hooks
from ..._patch import Patch, celery_5_7, celery_version
from ...policy import Policy

patch = Patch(
    name="tolerant_parts",
    defects={
        "A1": "Redis: one failing header task and the body never runs",
        "A1b": "Redis: the same for nested groups, where _unpack_chord_result was replaced, too",
        "A8": "Redis: a member killed at its hard time limit: the errback is called twice",
        "A9": "Redis: the error of a failed chord names one member only",
    },
    driver="redis",
    mended={"A8": celery_5_7},
)

#: The chord whose part is being returned in this context.
_returning: ContextVar[JoinedHeader | None] = ContextVar("chordguard_returning", default=None)


class JoinedHeader:
    """Takes the place of the saved GroupResult that Celery joins when a chord is complete."""

    supports_native_join = True

    def __init__(self, backend: Any, request: Any) -> None:
        self.backend = backend
        self.group_id = request.group
        self.body = request.chord
        self.saved: Any = None
        #: Whether the chord fails instead of running its body.
        self.has_failed = False

    def on_ready(self) -> None:
        """Do nothing: Celery marks a saved GroupResult as ready before it joins it."""

    def join_native(self, timeout: float | None = None, propagate: bool = True) -> list[Any]:
        """Return what the body gets; ChordError when more failed than is tolerated."""
        self.has_failed = True
        joined = self._joined()
        self.has_failed = False
        return joined

    def forget_size(self) -> None:
        """Have parts that come now end nothing; from 5.7 on Celery does so itself."""
        key = self.backend.get_key_for_group(self.group_id, ".s")
        self.backend.ensure(self.backend.client.delete, (key,))

    def _joined(self) -> list[Any]:
        parts = self._parts()
        results = {part.task_id: part for part in parts}
        if self.saved is None:
            header = [part.task_id for part in parts]
        else:
            header = completion.header_of(self.saved.results)
            missing = [id_ for id_ in completion.leaf_ids(header) if id_ not in results]
            results.update(backends.read_results(self.backend, missing))
        policy = Policy.of(self.backend.app, self.body)
        return completion.join(self.backend, header, results, policy)

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
    if hooks.counts_itself(backend):
        return wrapped(*args, **kwargs)
    request = args[0] if args else kwargs["request"]
    header = JoinedHeader(backend, request)
    # A failing chord may return a part of the chord around it: that one asks for itself.
    token = _returning.set(header)
    request.chord = _with_errbacks_once(backend.app, header.body)
    try:
        return wrapped(*args, **kwargs)
    finally:
        request.chord = header.body
        _returning.reset(token)
        if header.has_failed and celery_version() < celery_5_7:
            header.forget_size()


@patch.wraps("celery.backends.redis", "RedisBackend.restore_group")
def restore_group(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    saved = wrapped(*args, **kwargs)
    header = _returning.get()
    group_id = args[0] if args else kwargs["group_id"]
    if header is None or header.group_id != group_id:
        return saved
    header.saved = saved
    return header


def _with_errbacks_once(app: Any, body: Any) -> Any:
    """Return the `body` that Celery publishes or fails."""
    if not body or not (body.get("options") or {}).get("link_error"):
        return body
    return completion.with_errbacks_once(app, maybe_signature(body, app=app))
