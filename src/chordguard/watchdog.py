"""Chords that nobody ends: looked at when they are due, in every worker with the patches.

A thread of the worker's main process (a greenlet under gevent) asks the ledger which chords are
due, every `chord_watchdog_interval` seconds. One that is well is looked at again later, one that
is not is mended as far as the evidence supports it.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery import bootsteps

from . import backends, completion, counting, processes, settings
from ._patch import is_patched
from .diagnosis import (
    READY,
    RUNNING,
    SIZE_MISSING,
    SLOWEST,
    Diagnosis,
    examine,
    examine_all,
)
from .ledger.model import Header, Ledger
from .repairing import Action, actions_for, carry_out

__all__ = ("Watchdog", "WatchdogStep", "look")

logger = logging.getLogger("chordguard")

#: Seconds for which a fork of the pool waits until a watchdog has done what it is at.
FORK_SECONDS = 5.0

#: How many chords are taken at once.
BATCH = 100

#: Seconds that a worker that stops waits for its watchdog.
STOPPING_SECONDS = 10.0


def look(
    ledger: Ledger,
    group_id: str,
    *,
    header: Header | None = None,
    body: Mapping[str, Any] | None = None,
    why_settle: str | None = None,
    pace: float | None = None,
) -> float | None:
    """Look at a chord of this app, and mend it as far as the evidence supports it.

    Arguments:
        ledger: Where it is counted.
        group_id: The chord.
        header: Its members' ids, for a ledger that does not know them.
        body: Its body, likewise.
        why_settle: Why the chord is to end now, unless it is just being ended.
        pace: Seconds after which the caller looks again if all is well; None: the more, the
            longer nothing has happened.

    Returns:
        The seconds until somebody should look again; None: it has ended.
    """
    found = examine(ledger, group_id, header=header, body=body)
    if header is not None and found.record is not None and found.record.header is None:
        # Its producer could not tell the members.
        ledger.set_header(group_id, header)
    actions = actions_for(found)
    if not actions and why_settle and found.body is not None and not _is_claimed(found):
        actions = [Action("abort", group_id, why_settle)]
    return _seconds_until_next(ledger, _mended(ledger, found, actions), pace)


def _mended(ledger: Ledger, found: Diagnosis, actions: Sequence[Action]) -> Diagnosis:
    """Carry out `actions`, and tell what is the matter then."""
    for action in actions:
        carry_out(ledger, found, action)
    if not actions:
        return found
    return examine(ledger, found.group_id, header=found.header, body=found.body)


def _is_known(app: Any, found: Diagnosis) -> bool:
    """Tell whether `app` has a task of the chord's body."""
    leaves = completion.waiting_for(found.body) if found.body is not None else ()
    return any(leaf.get("task") in app.tasks for leaf in leaves)


def _is_claimed(found: Diagnosis) -> bool:
    return found.record is not None and found.record.claimed_until > time.time()


def _seconds_until_next(
    ledger: Ledger, found: Diagnosis, pace: float | None = None
) -> float | None:
    if found.record is None:
        return None
    app = ledger.backend.app
    shortest = settings.interval(app)
    if _is_claimed(found):
        # It may be given back before it ends.
        return min(max(shortest, 1.0), max(0.0, found.record.claimed_until - time.time()))
    if found.kind not in (RUNNING, SIZE_MISSING, READY):
        return shortest
    seconds = min(max(shortest, found.idle), max(shortest, SLOWEST)) if pace is None else pace
    if found.timeout is not None and not found.is_overdue:
        seconds = min(seconds, found.timeout - found.idle)
    return max(seconds, min(1.0, shortest))


class _Forks:
    """Keeps the pool from forking while a watchdog is at work.

    The child would inherit what another thread held at that moment, and nobody would ever give
    it back: above all the locks that SQLite keeps of the files of its process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_ours = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before, after_in_parent=self._after, after_in_child=self._renew
            )

    @contextmanager
    def held_up(self) -> Iterator[None]:
        with self._lock:
            yield

    def _before(self) -> None:
        # Bounded: who forks is the main loop of the worker.
        self._is_ours = self._lock.acquire(timeout=FORK_SECONDS)

    def _after(self) -> None:
        if self._is_ours:
            self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


_forks = _Forks()


class Watchdog:
    """Looks at the chords that are due, until it is stopped.

    Arguments:
        app: The app of the worker.
        pool: Its pool.
    """

    def __init__(self, app: Any, pool: Any = None) -> None:
        self.app = app
        self._deaths = processes.Deaths(pool)
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._ledger: Ledger | None = None

    def start(self) -> None:
        """Start to look, after a first interval."""
        self._deaths.look()
        self._thread = threading.Thread(target=self._run, name="chordguard-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop to look; the chord at hand is ended first, unless that takes long."""
        self._is_stopped.set()
        if self._thread is not None:
            self._thread.join(STOPPING_SECONDS)

    def _run(self) -> None:
        while not self._is_stopped.wait(self._seconds()):
            try:
                self.look_at_due()
            except Exception:  # noqa: BLE001 - it is logged
                counting.warn_once("The watchdog could not look at chords")

    def _seconds(self) -> float:
        interval = settings.seconds(self.app, "chord_watchdog_interval")
        # Spread, so that the workers take turns.
        return max(0.05, interval) * random.uniform(0.8, 1.2)  # noqa: S311

    def look_at_due(self) -> int:
        """Look at each chord that is due; return how many there were."""
        looked_at = 0
        while not self._is_stopped.is_set():
            with _forks.held_up():
                ledger = self._ledger_now()
                if ledger is None:
                    break
                # Their chords are due then.
                self._deaths.expire_claims(ledger.expire)
                now = time.time()
                # Should this one die over them, the next look is another's.
                interval = settings.seconds(self.app, "chord_watchdog_interval")
                taken = ledger.take_due(now, now + max(1.0, 2 * interval), BATCH)
                chords = self._examined(ledger, taken)
            for found in chords:
                with _forks.held_up():
                    self._look(ledger, found)
            looked_at += len(taken)
            if len(taken) < BATCH:
                break
        return looked_at

    def _ledger_now(self) -> Ledger | None:
        if not settings.get(self.app, "chord_ledger"):
            return None
        if self._ledger is None:
            self._ledger = counting.ledger_of(self.app.backend)
            if self._ledger is not None:
                self._ledger.keep_engine()
        return self._ledger

    def _examined(self, ledger: Ledger, group_ids: Sequence[str]) -> list[Diagnosis]:
        try:
            return examine_all(ledger, group_ids)
        except Exception:  # noqa: BLE001 - logged where it fails again
            # One that cannot be read does not keep the others from being looked at.
            return [found for id_ in group_ids for found in self._examined_alone(ledger, id_)]

    def _examined_alone(self, ledger: Ledger, group_id: str) -> list[Diagnosis]:
        try:
            return [] if self._is_stopped.is_set() else [examine(ledger, group_id)]
        except Exception:
            logger.exception("Chord %s could not be looked at", group_id)
            return []

    def _look(self, ledger: Ledger, found: Diagnosis) -> None:
        """Mend a chord. It may be another app's on the same result backend.

        One whose body this app does not have is left alone.
        """
        try:
            if self._is_stopped.is_set():
                ledger.look_again(found.group_id, time.time())
                return
            actions = actions_for(found) if _is_known(self.app, found) else []
            seconds = _seconds_until_next(ledger, _mended(ledger, found, actions))
        except Exception:
            # It stays taken for a while: then somebody looks again.
            logger.exception("Chord %s could not be looked at", found.group_id)
            return
        # What the ledger does not know any more is not due any more.
        ledger.look_again(found.group_id, time.time() + (seconds or 0.0))


class WatchdogStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs a :class:`Watchdog` for as long as the worker runs."""

    label = "Chord watchdog"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        app = worker.app
        self.enabled = bool(
            is_patched(app)
            and settings.seconds(app, "chord_watchdog_interval")
            and settings.get(app, "chord_ledger")
            and backends.is_supported(app.backend)
        )

    def create(self, worker: Any) -> Watchdog:
        """Make the watchdog, before the pool has children."""
        processes.be_worker()
        atexit.register(_release_claims, worker.app, os.getpid())
        return Watchdog(worker.app, worker.pool)


def _release_claims(app: Any, pid: int) -> None:
    """Give back what a worker that ends holds: its children are gone, nobody ends those chords."""
    if os.getpid() != pid:
        return
    try:
        ledger = counting.ledger_of(app.backend)
        released = 0 if ledger is None else ledger.release_all()
    except Exception:  # noqa: BLE001 - it is logged
        counting.warn_once("The claims of this worker run out by themselves")
        return
    if released:
        logger.warning("%d chords are left to other workers", released)
    processes.forget_worker()
