"""What was done although it seems to have failed is not done twice."""

from __future__ import annotations

import contextlib
import time

import pytest
import redis
import sqlalchemy as sa
from celery.utils import uuid
from sqlalchemy.engine import Engine

import chordguard.ledger.scripts
from chordguard.upstream.backends import is_django, is_redis
from tests.unit.ledger.chords import LATER, count, counted, in_redis, start


class Lost:
    """Have the first call done, but seem to have failed."""

    def __init__(self, error, call):
        self.error = error
        self.call = call
        self.is_lost = False

    def __call__(self, *args, **kwargs):
        answer = self.call(*args, **kwargs)
        if not self.is_lost:
            self.is_lost = True
            raise self.error
        return answer


@pytest.fixture
def first_answer_lost(ledger, monkeypatch):
    """Return a context manager in which the first change is made, but seems to have failed."""

    @contextlib.contextmanager
    def in_sql():
        lost = Lost(
            sa.exc.OperationalError("COMMIT", {}, ConnectionError("lost")),
            lambda connection: connection.connection.dbapi_connection.commit(),
        )

        def commit(connection):
            if not lost.is_lost:
                lost(connection)

        sa.event.listen(Engine, "commit", commit)
        try:
            yield
        finally:
            sa.event.remove(Engine, "commit", commit)
        assert lost.is_lost

    @contextlib.contextmanager
    def in_django():
        from django.db import OperationalError, connections

        error, connection = OperationalError("lost"), connections[ledger.alias]
        commit = Lost(error, connection._commit)

        def write(execute, sql, *rest):
            is_alone = not connection.in_atomic_block and not sql.startswith("SELECT")
            if commit.is_lost or not is_alone:
                return execute(sql, *rest)
            commit.is_lost = True
            execute(sql, *rest)
            raise error

        with monkeypatch.context() as patched, connection.execute_wrapper(write):
            patched.setattr(connection, "_commit", lambda: commit())
            yield
        assert commit.is_lost

    @contextlib.contextmanager
    def in_redis():
        client = ledger.backend.client
        for name in ("add", "claim", "close", "count", "due", "look", "renew", "size"):
            client.script_load(chordguard.ledger.scripts._script(name)[0])
        error = redis.exceptions.ConnectionError("lost")
        pipeline = type(client.pipeline())
        execute = Lost(error, pipeline.execute)
        script = Lost(error, client.evalsha)
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "execute", lambda *args, **options: execute(*args, **options))
            patched.setattr(client, "evalsha", script)
            yield
        assert execute.is_lost or script.is_lost

    if is_django(ledger.backend):
        return in_django
    return in_redis if is_redis(ledger.backend) else in_sql


def test_members_that_are_told_are_there_once(ledger, first_answer_lost):
    group_id = start(ledger, None)

    with first_answer_lost():
        ledger.set_header(group_id, ["a", ["b"]])

    assert 2 == ledger.read(group_id).size
    assert ["a", ["b"]] == ledger.claim(group_id).header


def test_members_that_are_added_are_there_once(ledger, group_id, first_answer_lost):
    with first_answer_lost():
        assert ledger.add(group_id, [["d"], "e"])

    assert 5 == ledger.read(group_id).size
    assert ["a", ["b"], "c", ["d"], "e"] == ledger.claim(group_id).header


def test_members_that_are_added_early_are_there_once(ledger, first_answer_lost):
    group_id = start(ledger, None)

    with first_answer_lost():
        assert ledger.add(group_id, ["d", "e"])
    ledger.set_header(group_id, ["a"])

    assert 3 == ledger.read(group_id).size


@in_redis
def test_members_are_added_once_to_a_chord_that_was_started_without_the_patches(
    ledger, first_answer_lost
):
    group_id = uuid()

    with first_answer_lost():
        ledger.add(group_id, ["d"])

    assert b"1" == ledger.backend.client.get(ledger.key(group_id, ".t"))


def test_part_counts_once(ledger, group_id, first_answer_lost):
    with first_answer_lost():
        count(ledger, group_id, "a")

    assert 1 == ledger.read(group_id).returned


def test_last_part_has_the_claim(ledger, group_id, first_answer_lost):
    count(ledger, group_id, "ab")

    with first_answer_lost():
        (claim,) = count(ledger, group_id, "c")

    assert ledger.renew(claim)


def test_who_claims_has_the_claim(ledger, group_id, first_answer_lost):
    with first_answer_lost():
        claim = ledger.claim(group_id)

    assert ledger.renew(claim)


def test_claim_is_renewed_and_given_back(ledger, group_id, first_answer_lost):
    claim = ledger.claim(group_id)
    with first_answer_lost():
        assert ledger.renew(claim)
    assert ledger.read(group_id).claimed_until

    with first_answer_lost():
        ledger.release(claim)
    assert 0 == ledger.read(group_id).claimed_until


def test_chord_is_opened_and_closed(ledger, first_answer_lost):
    group_id = uuid()
    with first_answer_lost():
        ledger.open(group_id, ["a"], None, time.time() + LATER, None)
    assert ["a"] == ledger.read(group_id).header

    with first_answer_lost():
        ledger.close(group_id)
    assert ledger.read(group_id) is None
    assert [None] == count(ledger, group_id, "a")
    assert set() == counted(ledger, group_id)
