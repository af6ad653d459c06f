"""Connections of the SQL ledger outside of a pool's children, where Celery keeps none.

A process that starts chords makes an engine, and connects, for each session of Celery's: for a
chord's row that takes longer than to send the chord. Here it keeps an engine, and one connection
for as long as it is in use: some time after the last use a thread closes it, and ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from .. import backends

__all__ = ("Connections", "lent", "new_manager")

#: Seconds without use after which a connection is closed, and at most twice as many.
IDLE_SECONDS = 1.0

#: Threads may use any number of connections at once; one of them is kept.
POOL = {"pool_size": 1, "max_overflow": -1}


class Connections:
    """The session managers of the apps of this process, and who uses them."""

    _lock: threading.Lock
    _managers: MutableMapping[Any, Any]
    _thread: threading.Thread | None

    def __init__(self) -> None:
        #: What a process had that this one was forked from: closed here, it would end there.
        self._inherited: list[Any] = []
        self._used = 0.0
        self._start_anew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    @contextmanager
    def lent(self, backend: Any) -> Iterator[tuple[Any, ...]]:
        """Lend the session manager for a database `backend`.

        Yields:
            The arguments for the backend's `ResultSession`: none, where Celery keeps a connection
            itself, or has none to keep.
        """
        if _is_served(backend):
            yield ()
            return
        with self._lock:
            self._users += 1
            manager = self._managers.get(backend.app)
            if manager is None:
                manager = self._managers[backend.app] = new_manager(backend, **POOL)
        try:
            yield (manager,)
        finally:
            with self._lock:
                self._users -= 1
                self._used = time.monotonic()
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="chordguard-connections", daemon=True
                    )
                    self._thread.start()

    def _run(self) -> None:
        is_idle = False
        while not is_idle:
            time.sleep(IDLE_SECONDS)
            with self._lock:
                is_idle = not self._users and time.monotonic() - self._used >= IDLE_SECONDS
                if is_idle:
                    self._thread = None
                    engines = [
                        engine
                        for manager in self._managers.values()
                        for engine in manager._engines.values()
                    ]
        for engine in engines:
            engine.dispose()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._managers = WeakKeyDictionary()
        self._thread = None
        self._users = 0

    def _leave_to_parent(self) -> None:
        self._inherited.extend(self._managers.values())
        self._start_anew()


def new_manager(backend: Any, **pool_options: Any) -> Any:
    """Return a session manager that keeps its engine, made as the `backend` says.

    `pool_options` are for the engine's pool, unless the backend brings a pool of its own.
    """
    stock: Any = backends.database_module().SessionManager

    class Manager(stock):  # type: ignore[misc]
        def get_engine(self, dburi: str, **options: Any) -> Any:
            given = {} if "poolclass" in options else pool_options
            return super().get_engine(dburi, **{**options, **given})

    manager = Manager()
    callback = getattr(_session_manager(backend), "engine_callback", None)
    if callback is not None:
        manager.engine_callback = callback
    # As in a child of the pool; elsewhere it makes an engine for each session.
    manager.forked = True
    return manager


def _is_served(backend: Any) -> bool:
    """Tell whether sessions of `backend` need no connection of ours."""
    if backend.url.startswith("sqlite"):
        return True  # it connects at no cost, and a file that is open does not survive a fork
    # Who gave this backend sessions of its own knows why.
    return "ResultSession" in vars(backend) or getattr(_session_manager(backend), "forked", True)


def _session_manager(backend: Any) -> Any:
    """Return Celery's session manager; None where the backend has another way to sessions."""
    manager = getattr(backend, "session_manager", None)
    if manager is None:  # up to 5.4
        defaults = getattr(type(backend).ResultSession, "__defaults__", None) or (None,)
        manager = defaults[0]
    return manager


lent = Connections().lent
