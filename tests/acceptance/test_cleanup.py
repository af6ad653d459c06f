"""`celery.backend_cleanup` runs while a chord is still running, on SQL."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from celery import chord

from chordguard import progress
from chordguard.ledger.access import ledger_of
from tests.harness import wait_until

#: Seconds after which results expire, and for which a chord may be without progress.
EXPIRES = 5

SETTINGS = {
    "result_expires": EXPIRES,
    "chord_timeout": 60,
    "chord_watchdog_interval": 0.5,
}

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql", "mysql"]),
    pytest.mark.cluster(settings=SETTINGS),
]


@pytest.fixture
def backend(cluster):
    return cluster.app.backend


def count_rows(backend, ids):
    session = backend.ResultSession()
    try:
        return session.query(backend.task_cls).filter(backend.task_cls.task_id.in_(ids)).count()
    finally:
        session.close()


def grow_old(backend, ids):
    """Have the results of some tasks expire."""
    then = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(seconds=10 * EXPIRES)
    session = backend.ResultSession()
    try:
        found = session.query(backend.task_cls).filter(backend.task_cls.task_id.in_(ids))
        found.update({"date_done": then}, synchronize_session=False)
        session.commit()
    finally:
        session.close()


def test_cleanup_spares_the_members_of_a_live_chord(cluster, backend, gate, record):
    t = cluster.tasks
    header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2), t.echo.s(3)]
    result = chord(header, t.collect.s(record=record.path)).apply_async()
    group_id, ids = result.parent.id, [member.id for member in result.parent.results]
    ledger = ledger_of(backend)
    wait_until(lambda: ledger.read(group_id).returned == 2, what="two parts")
    other = t.echo.delay(4)
    other.get(timeout=10)
    grow_old(backend, [*ids, other.id])

    backend.cleanup()

    assert 2 == count_rows(backend, ids)
    assert 0 == count_rows(backend, [other.id])
    gate.open()
    assert [1, 2, 3] == cluster.run(result)
    assert 1 == record.count("body")

    wait_until(lambda: ledger.read(group_id) is None, what="end")
    grow_old(backend, [*ids, result.id])
    backend.cleanup()
    assert 0 == count_rows(backend, [*ids, result.id])
    assert set() == ledger.counted(group_id)


def test_cleanup_spares_a_chord_without_progress_for_long(cluster, backend, gate):
    t = cluster.tasks
    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s()).apply_async()
    ledger = ledger_of(backend)
    wait_until(lambda: ledger.read(result.parent.id).returned == 1, what="a part")
    grow_old(backend, [member.id for member in result.parent.results])
    tables = ledger.tables
    with ledger._transaction() as connection:
        old = ledger.read(result.parent.id).progressed - 3 * EXPIRES
        connection.execute(tables.chord.update().values(progressed=old))

    backend.cleanup()

    assert ledger.read(result.parent.id) is not None
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_cleanup_forgets_how_chords_ended_when_their_results_have_expired(cluster, backend):
    t = cluster.tasks
    result = chord([t.echo.s(1)], t.collect.s()).apply_async()
    assert [1] == cluster.run(result)
    ledger, group_id = ledger_of(backend), result.parent.id
    wait_until(lambda: progress(result).has_ended, what="end")
    backend.cleanup()
    assert group_id in ledger.progress([group_id])

    wait_until(lambda: (progress(result).idle or 0.0) > EXPIRES, what="expiry")
    backend.cleanup()

    assert {} == ledger.progress([group_id])
