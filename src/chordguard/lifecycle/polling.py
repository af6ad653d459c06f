"""Chords that are polled: the header read in bulk, when to poll again, when to stop.

Where the parts of a chord are not counted (see :mod:`.counting`), the task `celery.chord_unlock`
checks again and again whether all members are ready; each poll is a retry of that task. The safety
net of a chord that is counted is the same task, with the same bounds.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.exceptions import ChordError
from celery.result import GroupResult, result_from_tuple

from .. import masking, settings
from ..failures import line_of
from ..ledger.packing import header_of, leaf_ids
from ..policy import Policy
from ..upstream import backends, hooks
from ..upstream.results import Results, read_results, ready_states
from ..upstream.signatures import task_ids, waiting_for
from .ending import Ending
from .settlement import Settlement

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "BODY",
    "EXCHANGE_TYPE",
    "Poll",
    "PolledHeader",
    "delay_before",
)

logger = logging.getLogger("chordguard")

#: The keyword argument of `chord_unlock` in which a poll tells the next one how many members
#: were ready, since when (Unix time in seconds), and how many of the first ones are known to be.
#: Stock workers pass it on unread.
PROGRESS = "chordguard_progress"

#: The keyword argument of the safety net of a chord that a key-value store counts: its body.
#: Workers without the patches find another in the body's place, and do not run this one twice.
BODY = "chordguard_body"

#: How many results a poll reads at once where each is read on its own.
PORTION = 20

#: The keyword argument in which Celery, from 5.7 on, hands the type of the exchange on.
EXCHANGE_TYPE = "_chord_unlock_exchange_type"


class PolledHeader(GroupResult):  # type: ignore[misc]
    """The results of a polled chord's header.

    From a database they are read with one statement per 500 members; elsewhere a poll goes on
    where the one before it stopped, at the first member that was not ready.
    """

    #: How many of the first members are known to be ready.
    known = 0

    @cached_property
    def header(self) -> list[Any]:
        """The members' ids, nested as the header is."""
        return header_of(self.results)

    @cached_property
    def ids(self) -> list[str]:
        """The members' ids in header order."""
        return list(leaf_ids(self.header))

    @cached_property
    def ready_count(self) -> int:
        """How many members are ready; looked up once."""
        if self.is_read_at_once:
            return len(ready_states(self.backend, self.ids))
        return self.known + len(ready_states(self.backend, self.ids[self.known :]))

    @property
    def is_read_at_once(self) -> bool:
        """Whether one statement tells which members are ready."""
        return backends.keeps_rows(self.backend)

    @cached_property
    def seen_count(self) -> int:
        """How many members are ready, up to the first portion with one that is not."""
        if self.is_read_at_once:
            return self.ready_count
        portion: Sequence[str] = self.ids[self.known : self.known + PORTION]
        while portion:
            ready = ready_states(self.backend, portion)
            if len(ready) < len(set(portion)):
                first = next(i for i, id_ in enumerate(portion) if id_ not in ready)
                self.known += first
                return self.known + len(ready) - first
            self.known += len(portion)
            portion = self.ids[self.known : self.known + PORTION]
        return self.known

    def ready(self) -> bool:
        """Tell whether all members are ready."""
        return self.seen_count >= len(set(self.ids))


@dataclass
class Poll:
    """One run of `celery.chord_unlock`: its task and what the message says."""

    task: Any
    group_id: str
    body: Any
    interval: float | None
    max_retries: int | None
    result: Sequence[Any]
    progress: Any
    #: What a retry of this poll has to be given beside its delay.
    retry_options: dict[str, Any]
    #: The members whose results were stored for the chord alone, when it has ended.
    spare: Sequence[str] = ()

    @classmethod
    def of(cls, task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Poll:
        """Take the arguments of `celery.chord_unlock` apart (celery/app/builtins.py).

        Several wrappers of one run share one poll: the outer hands it to the inner.
        """
        handed_on = getattr(kwargs.get("GroupResult"), "__self__", None)
        if isinstance(handed_on, cls):
            return handed_on
        names = ("group_id", "callback", "interval", "max_retries", "result")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return cls(
            task,
            given["group_id"],
            given.get(BODY) or given["callback"],
            given.get("interval"),
            given.get("max_retries"),
            given.get("result") or (),
            given.get(PROGRESS),
            {"exchange_type": given[EXCHANGE_TYPE]} if EXCHANGE_TYPE in given else {},
        )

    @classmethod
    def is_ours(cls, task: Any, kwargs: Mapping[str, Any]) -> bool:
        """Tell whether Celery's own task polls a chord that we know how to read."""
        given = kwargs.get("GroupResult")
        ours = given is None or isinstance(getattr(given, "__self__", None), cls)
        is_celerys = not hooks.polls_itself(task.app)
        can = backends.capabilities(task.app.backend)
        is_served = can.polls or can.increments or backends.is_django(task.app.backend)
        return ours and is_celerys and is_served

    @property
    def app(self) -> Celery:
        """The app of the task."""
        return self.task.app

    @cached_property
    def policy(self) -> Policy:
        """The chord's policy."""
        return Policy.of(self.app, self.body)

    @cached_property
    def header(self) -> PolledHeader:
        """The results of the chord's header."""
        header = PolledHeader(
            self.group_id,
            [result_from_tuple(result, app=self.app) for result in self.result],
            app=self.app,
        )
        with suppress(TypeError, ValueError, LookupError):
            header.known = min(int(self.progress[2]), len(header.ids))
        return header

    def group_result(self, *_: Any, **__: Any) -> PolledHeader:
        """Take the place of the class that stock `chord_unlock` makes the header of."""
        return self.header

    @property
    def bound(self) -> int | None:
        """After how many retries the chord is settled; None: never.

        What was asked for this chord wins; else the lower of the task's own bound (as set by
        `task_annotations`) and the setting.
        """
        if self.max_retries is not None:
            return self.max_retries
        bounds = (self.task.max_retries, settings.get(self.app, "chord_unlock_max_retries"))
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def retries(self) -> int:
        """How many polls of this chord there were before this one."""
        retries: int = self.task.request.retries
        return retries

    @property
    def delay(self) -> float:
        """Seconds until the next poll."""
        return delay_before(self.app, self.task, self.retries, self.interval)

    @property
    def asked_delay(self) -> float | None:
        """Seconds until the next poll where somebody asked for so many; else None."""
        is_set = self.app.conf.get("chord_unlock_retry_delay") is not None
        return self.delay if is_set or self.interval is not None else None

    def why_settle(self, idle: float) -> Settlement | None:
        """Return why this chord, which is not ready, is not polled again; None: it is.

        `idle` is for how many seconds no further member got ready.
        """
        if self.bound is not None and self.retries >= self.bound:
            return Settlement.polled_out(self.retries + 1, self.bound)
        timeout = self.policy.timeout
        if timeout is not None and idle >= timeout:
            return Settlement.overdue(idle, timeout)
        return None

    def idle(self) -> float:
        """Return for how many seconds no further member got ready; tell the next poll."""
        if self.policy.timeout is None:
            return 0.0
        now = time.time()
        count, since = self._last_progress(now)
        seen = self.header.seen_count
        if seen <= count and now - since >= self.policy.timeout:
            # Those behind the first one that is not ready count, too.
            seen = self.header.ready_count
        if seen > count:
            count, since = seen, now
        progress = [count, since, self.header.known]
        # A retry sends the request's own arguments again.
        self.task.request.kwargs = {**self.task.request.kwargs, PROGRESS: progress}
        return now - since

    def finish(self, settlement: Settlement | None = None) -> None:
        """End the chord with the results that are there.

        `settlement` is why it ends before all members are ready: those that are missing count as
        lost.
        """
        if settlement is not None and self.is_over():
            logger.warning("Chord %s has ended already; it was polled once more", self.group_id)
            return
        if settlement is not None:
            logger.warning("Chord %s is settled %s", self.group_id, settlement)
        found = read_results(self.app.backend, self.header.ids)
        ready = Results(r for r in found.values() if r.is_ready)
        self.spare = found.spare
        header = self.header.header
        ending = replace(self._ending, header=header, results=ready, settlement=settlement)
        ending.publish_or_fail()

    def give_up(self, exc: BaseException) -> None:
        """Fail a chord that will not be polled again because of `exc`, unless it has ended."""
        if not self.is_over():
            error = ChordError(
                f"chord_unlock failed and is not retried: {masking.masked(line_of(exc))}"
            )
            error.__cause__ = exc
            self._ending.fail(error)

    @property
    def _ending(self) -> Ending:
        return Ending(self.app, self.group_id, self.body, self.policy)

    def is_over(self) -> bool:
        """Tell whether the body has a result."""
        ids = task_ids(waiting_for(self.body))
        return bool(ready_states(self.app.backend, ids))

    def _last_progress(self, now: float) -> tuple[int, float]:
        try:
            count, since = self.progress[:2]
            return int(count), min(float(since), now)
        except (TypeError, ValueError, LookupError):
            return self.header.seen_count, now  # the first poll, or not our message


def delay_before(app: Celery, task: Any, retries: int, interval: float | None = None) -> float:
    """Return the seconds between poll number `retries` (from 0) and the next one.

    `interval` is what was asked for one chord; else the setting decides, else the task.
    """
    delay = interval
    if delay is None:
        delay = app.conf.get("chord_unlock_retry_delay")
        delay = (
            task.default_retry_delay
            if delay is None
            else settings.seconds(app, "chord_unlock_retry_delay")
        )
    factor = float(settings.get(app, "chord_unlock_retry_backoff"))
    if factor > 1:
        ceiling = settings.seconds(app, "chord_unlock_retry_backoff_max")
        try:
            grown = delay * factor**retries
        except OverflowError:  # a chord may be polled for days
            grown = ceiling
        delay = max(delay, min(ceiling, grown))
    if settings.get(app, "chord_unlock_retry_jitter"):
        delay *= random.uniform(0.5, 1.0)  # noqa: S311
    return float(delay)
