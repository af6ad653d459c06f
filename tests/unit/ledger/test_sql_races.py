from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from chordguard.ledger.model import Part
from chordguard.ledger.sql import DatabaseLedger
from tests.harness import wait_until
from tests.unit.ledger.chords import on, start

#: How many transactions of the database at hand wait for another one. The table of transactions
#: of InnoDB is not renewed while somebody keeps reading it: there a statement that runs for a
#: second is one that waits.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE command = 'Query' AND time >= 1 AND db = database() AND id <> connection_id()",
}


@pytest.mark.parametrize("task_id", ["a", "b"], ids=["counted before", "not counted yet"])
@pytest.mark.parametrize("kind", on(*WAITING))
def test_part_that_comes_while_the_chord_is_closed_leaves_nothing(kind, ledger, group_id, task_id):
    ledger.count(group_id, Part("a"))
    tables, this = ledger.tables, {"chord": group_id}
    engine = sa.create_engine(ledger.backend.url)
    # What waits is seen by a transaction that began later.
    watching = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with ThreadPoolExecutor(1) as pool, watching:
        with engine.begin() as closing:
            closing.execute(tables.remove_members, this)
            closing.execute(tables.remove, this)
            claim = pool.submit(ledger.count, group_id, Part(task_id))
            wait_until(
                lambda: claim.done() or watching.execute(sa.text(WAITING[kind])).scalar(),
                what="a part that waits",
            )
        assert claim.result() is None
    engine.dispose()

    assert set() == ledger.counted(group_id)
    assert ledger.read(group_id) is None


@pytest.mark.parametrize("kind", on("postgresql", "mysql"))
def test_part_that_is_counted_while_its_chord_is_closed_leaves_nothing(ledger):
    group_id = start(ledger, ["a", "b"])
    other = DatabaseLedger(ledger.backend)
    counted_meanwhile = []

    @sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
    def count_meanwhile(connection, cursor, statement, *_):
        is_row = statement.startswith(f"DELETE FROM {ledger.tables.chord.name} ")
        if is_row and not counted_meanwhile:
            counted_meanwhile.append("a")
            other.count(group_id, Part("a"))

    try:
        ledger.close(group_id)
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", count_meanwhile)

    assert ["a"] == counted_meanwhile
    assert set() == ledger.counted(group_id)
