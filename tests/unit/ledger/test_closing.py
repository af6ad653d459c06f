from __future__ import annotations

from chordguard.ledger.model import Part
from tests.unit.ledger.chords import count, counted, in_redis, in_sql, keys_of


@in_sql
def test_nothing_is_left(ledger, group_id):
    ledger.count(group_id, Part("a", b"payload"))
    assert ledger.has(group_id)

    for _ in range(2):
        ledger.close(group_id)

    assert not ledger.has(group_id)
    assert ledger.read(group_id) is None
    assert set() == ledger.counted(group_id)


@in_redis
def test_only_the_mark_is_left(ledger, group_id):
    count(ledger, group_id, "abc")
    ledger.add(group_id, ["d"])
    mark = ledger.key(group_id, ".c")

    ledger.close(group_id)

    assert {mark} == keys_of(ledger)
    assert b"done" == ledger.backend.client.get(mark)


def test_closed_twice_is_closed(ledger, group_id):
    for _ in range(2):
        ledger.close(group_id)

    assert [None] == count(ledger, group_id, "a")
    assert set() == counted(ledger, group_id)
