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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from celery import bootsteps

from .. import settings
from ..engine.patch import is_patched
from ..ledger.access import ledger_of
from ..ledger.model import Ledger
from ..log import is_reported, warn_once, warn_once_of
from ..upstream import backends, stores
from . import processes
from .checkup import checkup, is_known
from .evidence import examine, examine_all
from .kinds import SLOWEST, Diagnosis

__all__ = (
    "Watchdog",
    "WatchdogStep",
)

logger = logging.getLogger("chordguard")

#: Seconds for which a fork of the pool waits until a watchdog has done what it is at.
FORK_SECONDS = 5.0

#: What is said, once, of a chord that is damaged.
DAMAGED = "Could not check chord %s: %s"

#: How many chords are taken at once.
BATCH = 100

#: Seconds that a worker that stops waits for its watchdog.
STOPPING_SECONDS = 10.0


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
        #: How many times in a row a chord could not be looked at, by id.
        self._failures: dict[str, int] = {}

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
                warn_once("The watchdog could not check chords; it will retry")

    def _seconds(self) -> float:
        interval = settings.seconds(self.app, "chord_watchdog_interval")
        # Spread, so that the workers take turns.
        return max(0.05, interval) * random.uniform(0.8, 1.2)  # noqa: S311

    def look_at_due(self) -> int:
        """Look at each chord that is due; return how many there were."""
        try:
            return self._look_at_all()
        finally:
            if self._ledger is not None:
                with _forks.held_up():
                    self._ledger.pause()

    def _look_at_all(self) -> int:
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
                if not ledger.may_count():
                    break
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
            self._ledger = ledger_of(self.app.backend)
            if self._ledger is not None:
                self._ledger.keep_engine()
        if self._ledger is not None and not self._ledger.may_count():
            return None
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
        except Exception:  # noqa: BLE001 - it is logged
            self._back_off(ledger, group_id)
            return []

    def _look(self, ledger: Ledger, found: Diagnosis) -> None:
        """Mend a chord. It may be another app's on the same result backend.

        One whose body this app does not have is left alone.
        """
        try:
            if self._is_stopped.is_set():
                ledger.look_again(found.group_id, time.time())
                return
            if found.is_damaged and not found.is_overdue:
                warn_once_of(found.group_id, DAMAGED, found.reason)
            seconds = checkup(ledger, found, may_repair=is_known(self.app, found))
            # What the ledger does not know any more is not due any more.
            seconds = SLOWEST if seconds is None else seconds
            left = ledger.look_again(found.group_id, time.time() + seconds)
            if left:
                warn_once_of(found.group_id, DAMAGED, left)
            self._failures.pop(found.group_id, None)
        except Exception as exc:  # noqa: BLE001 - it is logged
            if not is_reported(exc):
                self._back_off(ledger, found.group_id)

    def _back_off(self, ledger: Ledger, group_id: str) -> None:
        """Say once that a chord could not be looked at; look again later each time.

        It stays taken for a while: then somebody looks again.
        """
        failures = self._failures[group_id] = self._failures.get(group_id, 0) + 1
        if failures == 1:
            logger.exception("Could not check chord %s; the watchdog will retry", group_id)
            return
        seconds = min(SLOWEST, settings.interval(self.app) * 2.0 ** min(failures, 16))
        with suppress(Exception):
            ledger.look_again(group_id, time.time() + seconds)


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
            and (backends.capabilities(app.backend).keeps_ledger or stores.has_store(app))
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
        ledger = ledger_of(app.backend)
        released = 0 if ledger is None else ledger.release_all()
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Could not release the claims of this worker; they expire by themselves")
        return
    if released:
        logger.warning("Released %d unfinished chords to other workers on shutdown", released)
    processes.forget_worker()
