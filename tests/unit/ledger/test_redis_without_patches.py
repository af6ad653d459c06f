"""Workers without the patches count on the same keys of Redis."""

from __future__ import annotations

import time

import celery
import pytest
from celery.utils import uuid

from tests import tasks
from tests.unit.ledger.chords import count, in_redis, request_of, rewrite, start

pytestmark = in_redis


@pytest.fixture
def stock(ledger, redis_ledger, monkeypatch):
    """Return a function that counts a part as Celery alone does."""
    backend = redis_ledger().backend
    # There Celery 5.2 looks for nested headers.
    monkeypatch.setattr(celery._state._tls, "current_app", backend.app)

    def count(group_id, task_id, index=0, body=None):
        backend.on_chord_part_return(
            request_of(task_id, index, group=group_id, chord=body), "SUCCESS", task_id
        )

    return count


@pytest.fixture
def body(ledger):
    return tasks.named(ledger.backend.app).collect.s().set(task_id=uuid())


def test_their_parts_are_progress(ledger, group_id, stock):
    rewrite(ledger, group_id, "progressed", 1.0)
    stock(group_id, "a")

    record = ledger.read(group_id)

    assert 1 == record.returned
    assert time.time() - 60 < record.progressed
    assert record.progressed == ledger.read(group_id).progressed


def test_they_and_we_count_one_chord(ledger, group_id, stock):
    stock(group_id, "a", 0)
    stock(group_id, "b", 1)

    (claim,) = count(ledger, group_id, "c")

    assert ["a", ["b"], "c"] == claim.header
    assert {"a", "b", "c"} == ledger.collect(claim)[1].keys()


def test_what_they_counted_is_not_uncounted(ledger, stock):
    ids = [uuid(), uuid()]
    group_id = start(ledger, ids)
    for task_id in ids:
        ledger.backend.store_result(task_id, 1, "SUCCESS")
    stock(group_id, ids[0])

    found = ledger.outstanding({group_id: ids})[group_id]

    assert ids[1:] == [result.task_id for result in found.uncounted]


def test_chord_that_they_started_is_counted_and_ended(ledger, redis_ledger, stock):
    group_id = uuid()
    redis_ledger().backend.set_chord_size(group_id, 2)
    stock(group_id, "a", 0)

    (claim,) = count(ledger, group_id, "b")

    assert claim.header is None
    header, results = ledger.collect(claim)
    assert ["a", "b"] == header
    assert {"a", "b"} == results.keys()
    assert ledger.read(group_id) is None


def test_their_nested_header_is_collected_as_it_is(ledger, redis_ledger, stock):
    backend, group_id = redis_ledger().backend, uuid()
    app, ids = backend.app, [uuid(), uuid()]
    inner = app.GroupResult(uuid(), [app.AsyncResult(ids[1])])
    backend.apply_chord((group_id, [app.AsyncResult(ids[0]), inner]), None)
    backend.set_chord_size(group_id, 2)

    claims = count(ledger, group_id, ids)

    assert [ids[0], [ids[1]]] == ledger.collect(claims[1])[0]


def test_chord_that_they_ended_is_over(ledger, group_id, stock, body):
    stock(group_id, "a", 0, body)
    assert 1 == ledger.read(group_id).returned
    stock(group_id, "b", 1, body)
    stock(group_id, "c", 2, body)

    assert ledger.read(group_id).is_over


def test_chord_that_they_ended_is_not_claimed_any_more(ledger, group_id, stock, body):
    count(ledger, group_id, "a")
    stock(group_id, "b", 1, body)
    stock(group_id, "c", 2, body)

    assert ledger.read(group_id).claimed_until <= time.time()


def test_chord_that_they_ended_stays_over_when_a_part_comes_late(ledger, group_id, stock, body):
    for index, task_id in enumerate("abc"):
        ledger.backend.store_result(task_id, task_id, "SUCCESS")
        stock(group_id, task_id, index, body)

    stock(group_id, "a", 0, body)

    assert ledger.read(group_id).is_over


def test_chord_that_they_counted_and_ended_alone_is_over(ledger, group_id, stock, body):
    for index, task_id in enumerate("abc"):
        ledger.backend.store_result(task_id, task_id, "SUCCESS")
        stock(group_id, task_id, index, body)

    assert ledger.read(group_id).is_over
