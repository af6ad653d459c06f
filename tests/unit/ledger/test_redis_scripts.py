from __future__ import annotations

import pytest
from celery.utils import uuid
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

import chordguard.ledger.scripts
from tests.unit.ledger.chords import count, in_redis, part_of, start

pytestmark = in_redis


def test_server_that_does_not_know_them_gets_their_text(ledger, monkeypatch):
    def forgotten(name):
        return script(name)[0], "0" * 40

    script = chordguard.ledger.scripts._script
    monkeypatch.setattr("chordguard.ledger.scripts._script", forgotten)
    group_id = start(ledger, ["a", "b"])

    assert [None, True] == [claim and True for claim in count(ledger, group_id, "ab")]


@pytest.mark.parametrize("is_ordered", [True, False])
def test_parts_are_kept_as_celery_keeps_them(ledger, is_ordered):
    ledger.backend._transport_options["result_chord_ordered"] = is_ordered
    group_id = start(ledger, ["a", "b"])

    parts = [part_of(ledger, "b", 2, index=1), part_of(ledger, "a", 1, index=0)]
    claims = [ledger.count(group_id, part) for part in parts]

    ids = list(ledger.parts(group_id))
    assert (["a", "b"] if is_ordered else ["b", "a"]) == ids
    assert ["a", "b"] == ledger.collect(claims[1])[0]


@pytest.mark.parametrize("size", [1000, 1001])
def test_claim_comes_with_the_parts_unless_they_are_many(ledger, size):
    ids = [uuid() for _ in range(size)]
    group_id = start(ledger, ids)

    *_, claim = [
        ledger.count(group_id, part_of(ledger, task_id, index=index))
        for index, task_id in enumerate(ids)
    ]

    assert (size > 1000) == (not claim.parts)
    header, results = ledger.collect(claim)
    assert ids == header
    assert set(ids) == set(results)


def test_member_without_a_place_comes_last(ledger):
    group_id = start(ledger, None)
    for task_id, index in (("c", None), ("b", 1), ("a", 0)):
        ledger.count(group_id, part_of(ledger, task_id, index=index))

    assert ["a", "b", "c"] == list(ledger.parts(group_id))


def test_reading_is_tried_again(ledger, group_id, monkeypatch):
    execute, failures = Redis.execute_command, [RedisConnectionError("cut")]

    def fail_once(*args, **kwargs):
        if failures:
            raise failures.pop()
        return execute(*args, **kwargs)

    monkeypatch.setattr(Redis, "execute_command", fail_once)

    assert group_id == ledger.read(group_id).group_id
    assert not failures
