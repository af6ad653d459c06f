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

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7, celery_version
from ...ledger.packing import header_of
from ...ledger.redis import RedisLedger
from ...lifecycle.errbacks import with_errbacks_once
from ...lifecycle.joining import join
from ...policy import Policy
from ...upstream import hooks

patch = Patch(
    "tolerant_parts",
    Defect("A1", "Redis: one failing header task and the body never runs"),
    Defect(
        "A1b", "Redis: the same for nested groups, where _unpack_chord_result was replaced, too"
    ),
    Defect(
        "A8",
        "Redis: a member killed at its hard time limit: the errback is called twice",
        until=celery_5_7,
    ),
    Defect("A9", "Redis: the error of a failed chord names one member only"),
    driver="redis",
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
        ledger = RedisLedger(self.backend)
        saved = None if self.saved is None else header_of(self.saved.results)
        header, results = ledger.collected(saved, ledger.parts(self.group_id))
        return join(self.backend, header, results, Policy.of(self.backend.app, self.body))


@patch.wraps("celery.backends.redis", "RedisBackend.on_chord_part_return", takes={"request": 0})
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any
) -> Any:
    if hooks.counts_itself(backend):
        return wrapped(*args, **kwargs)
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


@patch.wraps("celery.backends.redis", "RedisBackend.restore_group", takes={"group_id": 0})
def restore_group(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, group_id: Any) -> Any:
    saved = wrapped(*args, **kwargs)
    header = _returning.get()
    if header is None or header.group_id != group_id:
        return saved
    header.saved = saved
    return header


def _with_errbacks_once(app: Any, body: Any) -> Any:
    """Return the `body` that Celery publishes or fails."""
    if not body or not (body.get("options") or {}).get("link_error"):
        return body
    return with_errbacks_once(app, maybe_signature(body, app=app))
