from __future__ import annotations

import pytest
import sqlalchemy as sa

from chordguard.ledger.model import Part
from chordguard.ledger.sql import DatabaseLedger
from tests.unit.ledger.chords import WAITING, count_during, on, start


@pytest.mark.parametrize("task_id", ["a", "b"], ids=["counted before", "not counted yet"])
@pytest.mark.parametrize("kind", on(*WAITING))
def test_part_that_comes_while_the_chord_is_closed_leaves_nothing(ledger, group_id, task_id):
    ledger.count(group_id, Part("a"))
    tables, this = ledger.tables, {"chord": group_id}

    def close(connection):
        connection.execute(tables.remove_members, this)
        connection.execute(tables.remove, this)

    _, claim = count_during(ledger, group_id, Part(task_id), close)

    assert claim is None
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
