"""Watch the parents of a result while somebody waits for it.

`AsyncResult.get` raises the error of a parent as soon as there is one. For a chord the
parents include every member of the header. Celery reads each unfinished one again on every
event; here they are read in bulk, and while nothing is known to have changed, not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from celery import states

from . import backends

__all__ = ("ParentsWatch",)

#: Looking for failed parents may take this share of the time spent waiting.
SHARE = 0.1

#: Seconds after which a backend that announces results is read all the same, in case that an
#: announcement was missed; doubled each time.
FIRST_REREAD = 1.0


class ParentsWatch:
    """Stands for all parents of a result: `maybe_throw` raises the first error among them.

    Arguments:
        backend: The result backend of the result that is waited for.
        parents: Its parents, nearest first, as `AsyncResult._parents` yields them.
    """

    def __init__(self, backend: Any, parents: Sequence[Any]) -> None:
        self.parents = parents
        self._backend = backend
        self._pending = [leaf for parent in reversed(parents) for leaf in _leaves(parent)]
        self._announces = backends.is_redis(backend)
        self._is_subscribed = False
        self._reread_after = FIRST_REREAD
        self._next_look = 0.0
        self._next_sweep = 0.0

    def stands_for(self, parents: Sequence[Any]) -> bool:
        """Tell whether `parents` are the very ones that are watched."""
        return len(parents) == len(self.parents) and all(
            one is other for one, other in zip(parents, self.parents, strict=True)
        )

    def maybe_throw(self) -> None:
        """Raise the error of the first parent that failed, as far as that is known."""
        if not self._pending:
            return
        now = time.monotonic()
        if now >= self._next_look:
            self._look()
        elif now >= self._next_sweep:
            self._sweep({})
            cost = time.monotonic() - now
            self._next_sweep = now + cost / SHARE

    def _look(self) -> None:
        """Read which of the pending parents are ready."""
        started = time.monotonic()
        self._sweep(self._read())
        if self._announces and self._pending and not self._is_subscribed:
            # What gets ready before the subscription is complete is not announced.
            self._is_subscribed = True
            for leaf in self._pending:
                leaf.backend.add_pending_result(leaf, weak=True)
            self._sweep(self._read())
        now = time.monotonic()
        pause = (now - started) / SHARE
        if self._announces:
            pause = max(pause, self._reread_after)
            self._reread_after *= 2
        self._next_look = now + pause

    def _read(self) -> dict[str, str]:
        ids = [leaf.id for leaf in self._pending if leaf._cache is None]
        return backends.ready_states(self._backend, ids)

    def _sweep(self, read: dict[str, str]) -> None:
        """Drop the parents that are known to have succeeded; raise the first error."""
        pending = []
        failed = None
        for leaf in self._pending:
            cache = leaf._cache
            state = read.get(leaf.id) if cache is None else cache["status"]
            if state in states.PROPAGATE_STATES:
                failed = failed or leaf
                pending.append(leaf)  # it is raised again for whoever asks again
            elif state not in states.READY_STATES:
                pending.append(leaf)
        self._pending = pending
        if failed is not None:
            failed.maybe_throw()


def _leaves(result: Any) -> Iterator[Any]:
    members = getattr(result, "results", None)
    if members is None:
        yield result
    else:
        for member in members:
            yield from _leaves(member)
