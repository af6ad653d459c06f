"""What one event loop waits for of one app: asked for together, by one thread at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from celery import states

from ..ledger.access import ledger_on
from ..upstream import backends
from ..upstream.results import meta_of, read_metas, ready_results
from .subscription import Subscription

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.tallies import Tally

__all__ = ("Found", "Hub", "hub_of")

T = TypeVar("T")

#: Seconds between two looks at results that nobody announces.
POLL = 0.1

#: To look may take this share of the time.
SHARE = 0.2

#: Seconds after which results that are announced are read all the same, should one be missed.
REREAD = 5.0

#: Seconds between two looks whether members have failed.
FAILURES = 1.0

#: Seconds until newcomers are subscribed to, those of that time together.
GATHER = 0.01

#: Seconds for which the hub stays when nobody waits any more.
LINGER = 1.0

#: For how many results one statement asks.
AT_ONCE = 5000

#: Bytes of an announced result from which on it is read, and decoded, in the thread.
LARGE = 16384


@dataclass(frozen=True)
class Found:
    """A result that is ready.

    Attributes:
        state: Its state.
        value: What the task returned; of one that failed whatever was stored.
        meta: All that was stored; None where only these two were read.
    """

    state: str
    value: Any = None
    meta: dict[str, Any] | None = None

    @property
    def has_failed(self) -> bool:
        """Tell whether the task failed or was revoked."""
        return self.state in states.PROPAGATE_STATES


#: What stands for the result of a header of which a member has failed.
FAILURE = Found(states.FAILURE)

#: The hubs of each event loop, by app: `hub_of` adds one, which takes itself off when it ends.
_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Hub]] = WeakKeyDictionary()


def hub_of(app: Celery) -> Hub:
    """Return the hub of the running event loop for an app."""
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    if app not in hubs:
        hubs[app] = Hub(app)
    return hubs[app]


class _Waiters(dict[str, set["asyncio.Future[Any]"]]):
    """Futures by the id that each waits for; one that is cancelled is taken off."""

    def add(self, id_: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.setdefault(id_, set()).add(future)
        future.add_done_callback(partial(self._take_off, id_))
        return future

    def _take_off(self, id_: str, future: asyncio.Future[Any]) -> None:
        waiting = self.get(id_)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self[id_]

    def hand_over(self, id_: str, value: Any) -> None:
        for future in self.pop(id_, ()):
            if not future.done():
                future.set_result(value)

    def fail(self, ids: Iterable[str], exc: BaseException) -> None:
        for id_ in ids:
            for future in self.pop(id_, ()):
                if not future.done():
                    future.set_exception(exc)


class Hub:
    """Waits for results and chords on behalf of all coroutines of an event loop.

    Arguments:
        app: Whose result backend and ledger are asked.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        #: That of the loop's thread, for all threads: each of its own would connect.
        self._backend = app.backend
        self._results = _Waiters()
        self._failures = _Waiters()
        #: By the time at which they are due, and the id.
        self._tallies: dict[float, _Waiters] = {}
        self._thread = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._subscription = Subscription(self._announced, self._wake.set)
        #: When the results that nobody announces, those that somebody does, and failures are due.
        self._next_poll = self._next_reread = self._next_failures = 0.0

    def result(self, task_id: str) -> asyncio.Future[Found]:
        """Return what is done when a result is ready."""
        return self._waiting(self._results.add(task_id))

    def failure(self, group_id: str) -> asyncio.Future[Found]:
        """Return what is done when a member of a live chord has failed, as its ledger counts."""
        return self._waiting(self._failures.add(group_id))

    def tally(self, chord_id: str, interval: float) -> asyncio.Future[Tally | None]:
        """Return what is done when it was asked, at the end of an interval, how far a chord is."""
        now = self._now()
        # Whoever asks in the same interval is answered at its end, all together.
        due = (now // interval + 1) * interval if interval else now
        return self._waiting(self._tallies.setdefault(due, _Waiters()).add(chord_id))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what blocks in the event loop's executor, one such function at a time."""
        async with self._thread:
            return await asyncio.get_running_loop().run_in_executor(None, function)

    def _waiting(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()
        return future

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        try:
            idle_since = None
            while True:
                self._wake.clear()
                await self._look()
                now = self._now()
                is_idle = not (self._results or self._failures or any(self._tallies.values()))
                idle_since = (idle_since or now) if is_idle else None
                if idle_since is not None and now - idle_since >= LINGER:
                    return
                # Nothing wakes it when the last one has been answered.
                await self._pause(min(LINGER, self._seconds_to_next()))
        except Exception as exc:  # noqa: BLE001 - those who wait are told
            self._fail_all(exc)
        finally:
            self._task = None
            hubs = _hubs.get(asyncio.get_running_loop(), {})
            if hubs.get(self._app) is self:
                del hubs[self._app]
            await self._subscription.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
            if self._subscription.is_open:
                await asyncio.sleep(GATHER)

    def _seconds_to_next(self) -> float:
        moments = [due for due, waiters in self._tallies.items() if waiters]
        if self._failures:
            moments.append(self._next_failures)
        if self._results:
            followed = self._subscription.ids
            is_polling = any(task_id not in followed for task_id in self._results)
            moments.append(self._next_poll if is_polling else self._next_reread)
        return max(0.001, min(moments, default=LINGER) - self._now())

    async def _look(self) -> None:
        """Subscribe to newcomers, read what is due and hand it over."""
        if self._results:
            await self._subscription.follow(self._backend, self._results)
        now = self._now()
        asked = self._due_results(now)
        tallies = [self._tallies.pop(due) for due in sorted(self._tallies) if due <= now]
        failures = list(self._failures) if now >= self._next_failures else []
        chords = list(dict.fromkeys([id_ for one in tallies for id_ in one] + failures))
        if not asked and not chords:
            return
        try:
            found, counted = await self.in_thread(partial(self._read, asked, chords))
        except Exception as exc:  # noqa: BLE001 - those who wait are told
            self._results.fail(asked, exc)
            for waiters in tallies:
                waiters.fail(list(waiters), exc)
            return
        pause = (self._now() - now) / SHARE
        self._next_poll = max(now + POLL, now + pause)
        if failures:
            self._next_failures = max(now + FAILURES, now + pause)
        for task_id, one in found.items():
            self._results.hand_over(task_id, one)
        for waiters in tallies:
            for id_ in list(waiters):
                waiters.hand_over(id_, counted.get(id_))
        for id_ in failures:
            tally = counted.get(id_)
            if tally is not None and tally.failed:
                self._failures.hand_over(id_, FAILURE)

    def _due_results(self, now: float) -> list[str]:
        followed, fresh = self._subscription.ids, self._subscription.take_fresh()
        is_reread = now >= self._next_reread
        if is_reread:
            self._next_reread = now + REREAD
        is_polled = now >= self._next_poll
        return [
            task_id
            for task_id in self._results
            if task_id in fresh or (is_reread if task_id in followed else is_polled)
        ]

    def _announced(self, task_id: str, payload: Any) -> None:
        """Take a result that Redis announces."""
        if task_id not in self._results:
            return
        if len(payload) > LARGE:
            self._subscription.refresh(task_id)
            self._wake.set()
            return
        meta = meta_of(self._backend, task_id, payload)
        if meta["status"] in states.READY_STATES:
            self._results.hand_over(task_id, _whole(meta))

    def _fail_all(self, exc: BaseException) -> None:
        for waiters in (self._results, self._failures, *self._tallies.values()):
            waiters.fail(list(waiters), exc)

    def _read(
        self, ids: Sequence[str], chords: Sequence[str]
    ) -> tuple[dict[str, Found], dict[str, Tally]]:
        """Read which results are ready, and how far chords are; in a thread."""
        found = dict(_ready(self._backend, ids)) if ids else {}
        ledger = ledger_on(self._backend, is_read=True) if chords else None
        return found, {} if ledger is None else ledger.progress(chords)


def _ready(backend: Any, ids: Sequence[str]) -> Iterable[tuple[str, Found]]:
    """Yield those results that are ready, with their ids."""
    if backends.keeps_rows(backend):
        for result in ready_results(backend, ids, at_once=AT_ONCE).values():
            yield result.task_id, Found(result.state, result.value)
        return
    if backends.can_be_read(backend):
        metas = read_metas(backend, ids)
    else:
        metas = ((task_id, backend.get_task_meta(task_id)) for task_id in ids)
    for task_id, meta in metas:
        if meta["status"] in states.READY_STATES:
            yield task_id, _whole(meta)


def _whole(meta: dict[str, Any]) -> Found:
    return Found(meta["status"], meta["result"], meta)
