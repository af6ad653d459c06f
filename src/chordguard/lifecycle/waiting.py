"""Watch the parents of a result while somebody waits for it.

`AsyncResult.get` raises the error of a parent as soon as there is one. For a chord the
parents include every member of the header. Celery reads each unfinished one again on every
event; here the unfinished ones are read together, at most for a small share of the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from celery import states

from ..upstream import backends
from ..upstream.announcements import announce, silence
from ..upstream.awaited import leaves_of
from ..upstream.results import read_metas, ready_states

__all__ = (
    "ParentsWatch",
    "app_of_waiting",
)

logger = logging.getLogger("chordguard")

#: Looking after the parents may take this share of the time spent waiting.
SHARE = 0.05

#: Up to this number of members Redis announces each result to the one who waits. Beyond it,
#: handling the announcements costs more than reading the results together.
MOST_ANNOUNCED = 200

#: Seconds after which announced results are read all the same, in case that one was missed;
#: doubled each time.
FIRST_REREAD = 1.0


def app_of_waiting(result: Any, _args: tuple[Any, ...] = ()) -> Any:
    """Return the app of a result that somebody waits for; None for one that has no parents."""
    return result.app if result.parent is not None else None


class ParentsWatch:
    """Stands for all parents of a result: `maybe_throw` raises the first error among them.

    Arguments:
        result: The result that is waited for.
        parents: Its parents, nearest first, as `AsyncResult._parents` yields them.
    """

    def __init__(self, result: Any, parents: Sequence[Any]) -> None:
        self._result = result
        self._backend = result.backend
        self._pending = [leaf for parent in reversed(parents) for leaf in leaves_of(parent)]
        self._announces = backends.is_redis(self._backend) and (
            len(self._pending) <= MOST_ANNOUNCED
        )
        self._is_followed = False
        self._silenced: list[Any] = []
        self._reread_after = FIRST_REREAD
        self._next_look = 0.0
        self._next_sweep = 0.0

    def in_place_of_parents(self) -> list[ParentsWatch]:
        """Take the place of `AsyncResult._parents` while somebody waits."""
        return [self]

    def maybe_throw(self) -> None:
        """Raise the error of the first parent that failed, as far as that is known."""
        if not self._pending:
            return
        now = time.monotonic()
        if now >= self._next_look or self._result._cache is not None:
            self._look()
        elif self._announces and now >= self._next_sweep:
            self._sweep({})
            self._next_sweep = now + (time.monotonic() - now) / SHARE

    def look_once(self) -> None:
        """Read the parents; raise the error of the first one that failed."""
        self._sweep(self._read())

    def _look(self) -> None:
        """Read which of the pending parents are ready."""
        started = time.monotonic()
        self._sweep(self._read())
        if self._pending and not self._is_followed:
            self._is_followed = True
            self._follow()
        now = time.monotonic()
        pause = (now - started) / SHARE
        if self._announces:
            pause = max(pause, self._reread_after)
            self._reread_after *= 2
        self._next_look = now + pause

    def _follow(self) -> None:
        """See to it that what gets ready later is announced, or that it is not."""
        if self._announces:
            for leaf in self._pending:
                leaf.backend.add_pending_result(leaf, weak=True)
            # What got ready before the subscription was complete was not announced.
            self._sweep(self._read())
        elif backends.is_redis(self._backend):
            self._silenced = silence(self._backend, self._result, self._pending)

    def stop(self) -> None:
        """Leave the parents as they were found: announced, as whoever waits for them expects."""
        silenced, self._silenced = self._silenced, []
        if not silenced:
            return
        try:
            announce(self._backend, silenced)
            self._read()
        except Exception:
            # The one who waited has a result, or an error that tells more.
            logger.exception("Cannot subscribe again to the results of a chord's members")

    def _read(self) -> dict[str, str]:
        """Return the states of the pending parents that are ready, by id."""
        unknown = {leaf.id: leaf for leaf in self._pending if leaf._cache is None}
        if not backends.is_redis(self._backend):
            return ready_states(self._backend, list(unknown))
        # The whole result came along: whoever subscribed to it with `then` is told, as by
        # an announcement.
        for task_id, meta in read_metas(self._backend, list(unknown)):
            unknown[task_id]._maybe_set_cache(meta)
        return {}

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
