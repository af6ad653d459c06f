"""How far chords are: counted, ended, unknown; by the ids of their headers and their bodies."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from celery.utils import uuid
from sqlalchemy.engine import Engine

from chordguard.ledger.model import Part
from chordguard.ledger.tallies import ENDED, End
from chordguard.signals import FAILED, SUCCEEDED, TOLERATED
from chordguard.upstream.backends import is_django, is_redis
from tests.unit.ledger.chords import count, in_redis, in_sql, keys_of, part_of, request_of, start

#: Members of a chord that has counters on most SQL databases.
LARGE = 200


def failed_part(ledger, task_id, index=0):
    return ledger.part_of(request_of(task_id, index), "FAILURE", ValueError(), is_ignored=False)


def numbers(ledger, id_):
    """Return total, done and failed, and how the chord ended; None for one that is not known."""
    tally = ledger.progress([id_]).get(id_)
    return None if tally is None else (tally.size, tally.returned, tally.failed, tally.outcome)


def test_of_a_live_chord(ledger):
    before, body_id = time.time(), uuid()
    group_id = start(ledger, ["a", ["b"], "c"], body_id=body_id)
    assert (3, 0, 0, None) == numbers(ledger, group_id)

    ledger.count(group_id, part_of(ledger, "a"))
    ledger.count(group_id, failed_part(ledger, "b", 1))
    ledger.count(group_id, failed_part(ledger, "b", 1))

    tallies = ledger.progress([body_id, group_id, "another"])
    assert {body_id, group_id} == {*tallies}
    assert tallies[body_id] == tallies[group_id]
    assert (3, 2, 1, None) == numbers(ledger, body_id)
    assert before - 1 <= tallies[group_id].created <= tallies[group_id].progressed
    ledger.close(group_id)


def test_members_are_known_before_the_last_one_is_sent(ledger):
    group_id = uuid()
    ledger.open(group_id, ["a", ["b", "a"]], None, time.time() + 600, None)

    assert (2, 0, 0, None) == numbers(ledger, group_id)
    ledger.close(group_id)


def test_members_of_a_generator_are_known_when_they_are_told(ledger):
    group_id = start(ledger, None)
    count(ledger, group_id, "a")
    assert (None, 1, 0, None) == numbers(ledger, group_id)

    ledger.set_header(group_id, ["a", "b"])

    assert (2, 1, 0, None) == numbers(ledger, group_id)
    ledger.close(group_id)


def test_members_that_are_added_count(ledger, group_id):
    ledger.add(group_id, ["d", "e"])

    assert (5, 0, 0, None) == numbers(ledger, group_id)


@pytest.mark.parametrize("end", [End(SUCCEEDED, 0), End(TOLERATED, 2), End(FAILED, 1)])
def test_of_a_chord_that_has_ended(ledger, end):
    body_id = uuid()
    group_id = start(ledger, ["a", "b", "c"], body_id=body_id)
    count(ledger, group_id, "ab")
    ledger.add(group_id, ["d"])
    created = ledger.progress([group_id])[group_id].created

    for _ in range(2):
        ledger.close(group_id, end)

    # A member that is lost is done: it failed.
    assert (4, 4, end.failed, end.outcome) == numbers(ledger, group_id)
    assert (4, 4, end.failed, end.outcome) == numbers(ledger, body_id)
    tally = ledger.progress([group_id])[group_id]
    assert created == pytest.approx(tally.created)
    assert tally.created <= tally.progressed
    assert ledger.read(group_id) is None


def test_of_a_chord_that_ended_elsewhere(ledger):
    group_id = start(ledger, ["a", "b"])
    ledger.count(group_id, failed_part(ledger, "a"))

    ledger.close(group_id, End(ENDED))

    assert (2, 2, 1, ENDED) == numbers(ledger, group_id)


@pytest.mark.parametrize("end", [None, End(FAILED)])
def test_of_a_chord_whose_members_were_never_known(ledger, end):
    group_id = start(ledger, None)
    count(ledger, group_id, "a")

    ledger.close(group_id, end)

    assert (end and (None, 1, 0, FAILED)) == numbers(ledger, group_id)


@pytest.mark.parametrize("is_known", [True, False])
def test_chord_that_was_not_sent_is_not_known(ledger, is_known):
    body_id = uuid()
    group_id = start(ledger, ["a"], body_id=body_id)

    ledger.abandon(group_id, is_known=is_known)

    assert {} == ledger.progress([group_id, body_id])


def test_chord_that_starts_again_is_live_again(ledger):
    group_id = start(ledger, ["a", "b"])
    count(ledger, group_id, "ab")
    ledger.close(group_id, End(TOLERATED, 1))

    ledger.open(group_id, ["a", "b"], None, time.time() + 600, None)
    assert (2, 0, 0, None) == numbers(ledger, group_id)

    ledger.close(group_id, End(SUCCEEDED, 0))
    assert (2, 2, 0, SUCCEEDED) == numbers(ledger, group_id)


@contextmanager
def round_trips(ledger):
    """Note the commands or statements that are sent."""
    sent = []
    if is_redis(ledger.backend):
        client = ledger.backend.client
        execute = client.execute_command
        client.execute_command = lambda *args, **options: (
            sent.append(args[0]) or execute(*args, **options)
        )
        try:
            yield sent
        finally:
            del client.execute_command
        return

    if is_django(ledger.backend):
        from django.db import connections

        def note_django(execute, sql, params, many, context):
            sent.append(sql)
            return execute(sql, params, many, context)

        with connections[ledger.alias].execute_wrapper(note_django):
            yield sent
        return

    def note(connection, cursor, statement, *_):
        sent.append(statement)

    sa.event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(Engine, "before_cursor_execute", note)


def test_large_chords_take_one_round_trip_together(ledger):
    ids = [f"{uuid()[:8]}-{number}" for number in range(LARGE)]
    large = start(ledger, ids)
    others = [start(ledger, ["a"]) for _ in range(20)]
    for index, task_id in enumerate(ids):
        part = failed_part(ledger, task_id, index)
        ledger.count(large, part if index % 2 else part_of(ledger, task_id, None, index))
    ledger.progress([large])

    with round_trips(ledger) as sent:
        tallies = ledger.progress([large, *others])

    assert 1 == len(sent)
    assert {large, *others} == {*tallies}
    assert (LARGE, LARGE, LARGE // 2, None) == numbers(ledger, large)

    ledger.close(large, End(TOLERATED))
    assert (LARGE, LARGE, LARGE // 2, TOLERATED) == numbers(ledger, large)
    for group_id in others:
        ledger.close(group_id)


@in_sql
def test_what_is_kept_in_sql_goes_when_the_results_have_expired(ledger):
    group_id = start(ledger, ["a"])
    ledger.close(group_id, End(FAILED, 1))

    ledger.forget_ended(time.time() - 60)
    assert (1, 1, 1, FAILED) == numbers(ledger, group_id)

    ledger.forget_ended(time.time() + 60)
    assert numbers(ledger, group_id) is None


@pytest.mark.parametrize("expires", [600, None])
def test_what_is_kept_on_redis_expires_with_the_results(require, redis_ledger, expires):
    require("redis")
    ledger, body_id = redis_ledger(result_expires=expires), uuid()
    group_id = start(ledger, ["a"], body_id=body_id)
    ledger.close(group_id, End(FAILED, 1))

    client = ledger.backend.client
    mark = ledger.key(group_id, ".c")
    seconds = [client.ttl(key) for key in keys_of(ledger) - {mark}]
    assert 2 == len(seconds)
    longest = expires or 30 * 86400
    assert all(longest - 10 <= found <= longest for found in seconds)


@in_redis
def test_members_that_workers_without_the_patches_count_are_counted(ledger, group_id):
    client, j = ledger.backend.client, ledger.key(group_id, ".j")
    ledger.count(group_id, part_of(ledger, "a"))
    client.zadd(j, {failed_part(ledger, "b").payload: 1})

    assert (3, 2, 1, None) == numbers(ledger, group_id)


@in_redis
def test_chord_that_a_worker_without_the_patches_ended(ledger, group_id):
    count(ledger, group_id, "abc")
    client = ledger.backend.client
    client.delete(*(ledger.key(group_id, end) for end in (".j", ".t", ".s")))

    assert (3, 3, 0, ENDED) == numbers(ledger, group_id)


@in_redis
def test_key_of_another_type_is_passed_over(ledger, group_id):
    client = ledger.backend.client
    client.delete(ledger.key(group_id, ".j"))
    client.set(ledger.key(group_id, ".j"), "no parts")

    assert (3, 0, 0, None) == numbers(ledger, group_id)


@in_sql
def test_part_that_comes_late_is_not_counted(ledger):
    group_id = start(ledger, ["a", "b"])
    ledger.close(group_id, End(FAILED, 2))

    assert ledger.count(group_id, Part("a")) is None
    assert (2, 2, 2, FAILED) == numbers(ledger, group_id)
