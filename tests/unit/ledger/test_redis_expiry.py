"""On Redis every key goes away by itself."""

from __future__ import annotations

import time

import pytest
from celery.utils import uuid

from chordguard.ledger.redis import SPARE_SECONDS
from tests.unit.ledger.chords import count, keys_of, part_of, start


@pytest.fixture(params=[600, None], ids=["results expire", "results never expire"])
def ledger(request, require, redis_ledger):
    require("redis")
    return redis_ledger(result_expires=request.param)


def everlasting(ledger):
    """Return the keys of this test that never expire."""
    return {key for key in keys_of(ledger) if ledger.backend.client.ttl(key) == -1}


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_at_every_stage(ledger, timeout):
    group_id, now = uuid(), time.time()
    claims = []
    stages = {
        "open": lambda: ledger.open(group_id, None, b"body", now, timeout),
        "early member": lambda: ledger.add(group_id, ["d"]),
        "part before the size": lambda: count(ledger, group_id, "a"),
        "set_header": lambda: ledger.set_header(group_id, ["a", "b"]),
        "add": lambda: ledger.add(group_id, ["e"]),
        "take_due": lambda: ledger.take_due(now + 1, now + 2, 10),
        "look_again": lambda: ledger.look_again(group_id, now + 3),
        "read": lambda: ledger.read(group_id),
        "claim": lambda: claims.append(ledger.claim(group_id)),
        "renew": lambda: ledger.renew(claims[-1]),
        "release": lambda: ledger.release(claims[-1]),
        "last part": lambda: claims.extend(count(ledger, group_id, "bde")),
        "release_all": lambda: ledger.release_all(),
        "close": lambda: ledger.close(group_id),
        "late part": lambda: count(ledger, group_id, "a"),
        "late look": lambda: ledger.look_again(group_id, now),
    }
    left = {}
    for stage, step in stages.items():
        step()
        left[stage] = everlasting(ledger)

    assert {stage: set() for stage in stages} == left
    assert claims[-1]


@pytest.mark.parametrize("is_aging", [True, False])
def test_is_renewed_by_a_part_when_a_tenth_is_over(ledger, is_aging):
    group_id, client = start(ledger, ["a", "b", "c"], timeout=10.0), ledger.backend.client
    count(ledger, group_id, "a")
    record = ledger.key(group_id, ".chordguard")
    keys = {record, ledger.key(group_id, ".j"), ledger.key(group_id, ".s")}
    if is_aging:
        client.hincrbyfloat(record, "renewed", -0.2 * SPARE_SECONDS)
    for key in keys:
        client.expire(key, 60)

    count(ledger, group_id, "b")

    lives = {key for key in keys if client.ttl(key) > SPARE_SECONDS}
    assert (keys if is_aging else set()) == lives


def test_of_a_chord_that_was_started_without_the_patches(ledger):
    group_id = uuid()

    ledger.set_size(group_id, 2)
    assert set() == everlasting(ledger)
    assert [None] == count(ledger, group_id, "a")
    assert set() == everlasting(ledger)
    assert all(count(ledger, group_id, "b"))
    assert set() == everlasting(ledger)


def test_of_a_chord_that_was_started_without_the_patches_and_takes_members(ledger):
    ledger.add(uuid(), ["d"])

    assert set() == everlasting(ledger)


def test_of_a_chord_that_has_ended_and_takes_members(ledger):
    group_id = start(ledger, ["a"])
    ledger.close(group_id)

    assert not ledger.add(group_id, ["d"])

    assert set() == everlasting(ledger)


@pytest.mark.parametrize("by", ["claim", "count"])
def test_of_what_is_due_where_it_has_expired(ledger, by):
    group_id = start(ledger, ["a"])
    index = ledger.key("chordguard", ".due")
    ledger.backend.client.delete(index)

    if by == "claim":
        ledger.claim(group_id)
    else:
        count(ledger, group_id, "a")

    assert set() == everlasting(ledger)


def test_chord_that_is_settled_soon_does_not_take_others_along(ledger):
    start(ledger, ["a"], timeout=None)
    index = ledger.key("chordguard", ".due")
    before = ledger.backend.client.ttl(index)

    start(ledger, ["a"], timeout=10.0)

    assert before - 5 <= ledger.backend.client.ttl(index)


def test_chord_that_is_closed_while_it_is_read_leaves_nothing(ledger, monkeypatch):
    group_id = start(ledger, ["a", "b"])
    # As if a worker without the patches had counted it.
    ledger.backend.client.zadd(ledger.key(group_id, ".j"), {part_of(ledger, "a").payload: 0})
    run = ledger._run

    def close_first(name, *args):
        if name == "note":
            run("close", group_id, 9, 1, 0)
        return run(name, *args)

    monkeypatch.setattr(ledger, "_run", close_first)
    assert ledger.read(group_id)

    assert set() == everlasting(ledger)
