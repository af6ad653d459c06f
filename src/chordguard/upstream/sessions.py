"""SQL sessions on the database of a result backend: the one way to them.

A process that starts chords makes an engine, and connects, for each session of Celery's: for a
chord's row that takes longer than to send the chord. Outside the children of a pool
:func:`session` *lends* an engine with one connection, which a thread closes some time after the
last use. A watchdog *keeps* an engine for its thread (:func:`keep`). A bounded backend is *given*
a session manager whose connections give up early (:func:`give`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from ..engine.patch import Foundation
from .database import database_module

__all__ = (
    "Connections",
    "dispose",
    "foundation",
    "give",
    "keep",
    "lent",
    "new_manager",
    "session",
    "transaction",
)

READ_COMMITTED = "READ COMMITTED"

#: The drivers of PostgreSQL that can be told to send no BEGIN.
DRIVERS_WITH_AUTOCOMMIT = ("psycopg", "psycopg2", "psycopg2cffi")

#: The attribute of a backend in whose database Celery's own tables are not needed.
HAS_OWN_TABLES = "chordguard_has_own_tables"

#: The session managers that :func:`give` gave to backends.
_given: MutableMapping[Any, Any] = WeakKeyDictionary()

#: Celery's own code opens its sessions on a backend with the manager that was given to it.
foundation = Foundation("sessions")


@foundation.wraps("celery.backends.database", "DatabaseBackend.ResultSession")
def _result_session(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    manager = _given.get(backend)
    if manager is None or args or kwargs:
        return wrapped(*args, **kwargs)
    return wrapped(manager)


def give(backend: Any, manager: Any) -> None:
    """Open all sessions on `backend` with a session `manager` from now on."""
    _given[backend] = manager


def dispose(backend: Any) -> None:
    """Close the connections of the manager that was given to `backend`."""
    for engine in _given[backend]._engines.values():
        engine.dispose()


def keep(backend: Any) -> Any:
    """Return a session manager that keeps its engine, for this thread; None where none is needed.

    A backend that is this thread's own is given it, so that Celery's sessions use it, too.
    """
    if backend.url.startswith("sqlite"):
        return None  # it connects at no cost, and a file that is open does not survive a fork
    manager = new_manager(backend)
    if not getattr(backend, "thread_safe", False):
        give(backend, manager)
    return manager


@contextmanager
def session(backend: Any, manager: Any = None) -> Iterator[Any]:
    """Open a session on a database `backend`, for the block.

    Arguments:
        backend: The result backend.
        manager: The session manager, as :func:`keep` returns it; None: as the process has it.
    """
    manager = manager or _given.get(backend)
    how: AbstractContextManager[tuple[Any, ...]]
    how = lent(backend) if manager is None else nullcontext((manager,))
    with how as arguments:
        opened = backend.ResultSession(*arguments)
        with database_module().session_cleanup(opened):
            yield opened


@contextmanager
def transaction(
    backend: Any, manager: Any = None, *, is_one_statement: bool = False
) -> Iterator[Any]:
    """Yield a connection at the right isolation level; commit at the end of the block.

    On PostgreSQL one statement is a transaction of its own: no round trips to begin and end.
    """
    with session(backend, manager) as opened, opened.get_bind().connect() as connection:
        dialect = connection.dialect
        mode: AbstractContextManager[None] = nullcontext()
        if dialect.name == "postgresql":
            if dialect.default_isolation_level != READ_COMMITTED:
                connection = connection.execution_options(isolation_level=READ_COMMITTED)
            elif is_one_statement and dialect.driver in DRIVERS_WITH_AUTOCOMMIT:
                mode = _autocommit(connection)
        with mode, connection.begin():
            yield connection


#: Seconds without use after which a connection is closed, and at most twice as many.
IDLE_SECONDS = 1.0

#: Threads may use any number of connections at once; one of them is kept.
POOL = {"pool_size": 1, "max_overflow": -1}


class Connections:
    """The session managers of the apps of this process, and who uses them."""

    _lock: threading.Lock
    #: By app and URL.
    _managers: MutableMapping[Any, dict[str, Any]]
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
            managers = self._managers.setdefault(backend.app, {})
            manager = managers.get(backend.url)
            if manager is None:
                manager = managers[backend.url] = new_manager(backend, **POOL)
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
                        for managers in self._managers.values()
                        for manager in managers.values()
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
    stock: Any = database_module().SessionManager

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
    manager.prepared = getattr(backend, HAS_OWN_TABLES, False)
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


@contextmanager
def _autocommit(connection: Any) -> Iterator[None]:
    """Have the driver send no BEGIN and COMMIT.

    SQLAlchemy's isolation level AUTOCOMMIT would have psycopg2 set the session's level twice for
    each use, and for each ping of the pool.
    """
    pooled = connection.connection
    # Before SQLAlchemy 1.4.24 it had another name.
    driver = getattr(pooled, "dbapi_connection", None) or pooled.connection
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False
