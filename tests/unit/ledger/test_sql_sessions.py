"""Connections of the SQL ledger, in processes that are no children of a pool."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from chordguard.ledger.sql import DatabaseLedger
from chordguard.upstream import sessions
from tests.harness import wait_until
from tests.unit.ledger.chords import app_on, on

THREADS = 4


@pytest.fixture
def kept(monkeypatch):
    """Return what keeps the connections of a test, which begins with none."""
    kept = sessions.Connections()
    monkeypatch.setattr(sessions, "lent", kept.lent)
    return kept


@pytest.fixture(params=on("postgresql", "mysql"))
def new_ledger(request, require, shared, kept):
    """Return a function that makes a ledger on the database that tests share."""
    require(request.param)
    url = shared(request.param).backend.url

    def make(**settings):
        ledger = DatabaseLedger(app_on(f"db+{url}", **settings).backend)
        assert ledger.is_usable()  # it creates the tables
        return ledger

    return make


@pytest.fixture
def connected():
    """Return a list that grows by each connection that this process makes."""
    made = []

    def note(*_):
        made.append(1)

    event.listen(Engine, "connect", note)
    yield made
    event.remove(Engine, "connect", note)


def ask(ledger):
    return ledger.group_ids()


def engine_of(kept, ledger):
    (engine,) = kept._managers[ledger.backend.app][ledger.backend.url]._engines.values()
    return engine


def test_process_connects_once_for_many_calls(new_ledger, connected):
    ledger = new_ledger()
    ask(ledger)
    before = len(connected)

    for _ in range(20):
        ask(ledger)

    assert before == len(connected)


def test_ledgers_of_an_app_share_a_connection(new_ledger, connected):
    ledger = new_ledger()
    ask(ledger)
    before = len(connected)

    ask(DatabaseLedger(ledger.backend))

    assert before == len(connected)


def test_connection_is_closed_when_nobody_uses_it(new_ledger, kept, connected, monkeypatch):
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 0.1)
    ledger = new_ledger()
    for _ in range(2):
        ask(ledger)
        made = len(connected)
        assert 1 == engine_of(kept, ledger).pool.checkedin()
        thread = kept._thread

        wait_until(lambda: not engine_of(kept, ledger).pool.checkedin(), what="no connection")
        thread.join(10)
        assert kept._thread is None

        ask(ledger)
        assert made + 1 == len(connected)


def test_connection_that_is_used_is_kept(new_ledger, kept, connected, monkeypatch):
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 0.05)
    ledger = new_ledger()
    ask(ledger)
    thread = kept._thread

    with ledger._session() as session:
        connection = session.connection()
        thread.join(0.3)
        assert thread.is_alive()
        assert not connection.closed
    made = len(connected)

    thread.join(10)
    assert made == len(connected)


def test_threads_do_not_wait_for_one_another(new_ledger, kept):
    ledger = new_ledger()
    barrier = threading.Barrier(THREADS)

    def use(_):
        with ledger._session() as session:
            session.connection()
            barrier.wait(10)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(use, range(THREADS)))

    assert 1 == engine_of(kept, ledger).pool.checkedin()


def test_pool_that_the_app_asks_for_is_used(new_ledger, kept):
    ledger = new_ledger(database_engine_options={"poolclass": NullPool})
    ask(ledger)

    assert isinstance(engine_of(kept, ledger).pool, NullPool)


def test_child_of_a_pool_uses_celerys_connection(new_ledger):
    ledger = new_ledger()
    sessions._session_manager(ledger.backend).forked = True
    try:
        with sessions.lent(ledger.backend) as arguments:
            assert () == arguments
    finally:
        sessions._session_manager(ledger.backend).forked = False


def test_backend_with_sessions_of_its_own_keeps_them(new_ledger):
    ledger = new_ledger()
    ledger.keep_engine()

    with sessions.session(ledger.backend) as session:
        assert [session.get_bind()] == [*ledger._kept._engines.values()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_child_process_has_a_connection_of_its_own(new_ledger, connected, monkeypatch):
    # However long the fork takes.
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 600.0)
    ledger = new_ledger()
    ask(ledger)
    before = len(connected)

    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            ask(ledger)
            ask(ledger)
            os._exit(0 if len(connected) == before + 1 else 1)
        os._exit(2)
    assert 0 == os.waitpid(pid, 0)[1]

    ask(ledger)
    assert before == len(connected)
