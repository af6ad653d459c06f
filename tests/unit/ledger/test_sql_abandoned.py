from __future__ import annotations

from chordguard.upstream.backends import is_django
from tests.unit.ledger.chords import count, in_sql, rewrite, start

pytestmark = in_sql


def test_chords_without_progress_are_forgotten(ledger, group_id):
    abandoned = start(ledger, ["a", "b"])
    count(ledger, abandoned, "a")
    rewrite(ledger, abandoned, "progressed", 100.0)

    assert 0 == ledger.forget_abandoned(100)
    assert 1 == ledger.forget_abandoned(101)
    assert ledger.read(abandoned) is None
    assert set() == ledger.counted(abandoned)
    assert ledger.read(group_id)


def test_members_without_their_chord_are_forgotten(ledger, group_id):
    count(ledger, group_id, "a")
    left = start(ledger, ["b", "c"])
    count(ledger, left, "b")
    # As if whoever closed it had died between the two.
    if is_django(ledger.backend):
        ledger._remove(ledger._chord(left))
    else:
        ledger._write(ledger.tables.remove, left)

    assert 0 == ledger.forget_abandoned(100)

    assert set() == ledger.counted(left)
    assert {"a"} == ledger.counted(group_id)
