from __future__ import annotations

import contextlib

import pytest
import sqlalchemy as sa
from celery.utils import uuid
from sqlalchemy.engine import Engine

from chordguard.ledger.model import Part
from tests.unit.ledger.chords import SQL, on


class Results:
    """A table that results are stored in."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.table = sa.Table(
            f"results_{uuid()[:8]}", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True)
        )
        self.engine = sa.create_engine(ledger.backend.url)
        self.table.create(self.engine)

    def store_and_count(self, group_id, task_id):
        statement = self.table.insert().values(id=sa.bindparam("result"))
        return self.ledger.store_and_count(
            group_id, Part(task_id), (statement, {"result": task_id})
        )

    def ids(self):
        with self.engine.connect() as connection:
            return set(connection.execute(sa.select(self.table.c.id)).scalars())


@pytest.fixture
def results(ledger):
    results = Results(ledger)
    yield results
    results.table.drop(results.engine)
    results.engine.dispose()


@contextlib.contextmanager
def commits_fail():
    """Lose the connection before each commit."""

    def lose(connection):
        connection.connection.dbapi_connection.close()

    sa.event.listen(Engine, "commit", lose)
    try:
        yield
    finally:
        sa.event.remove(Engine, "commit", lose)


@pytest.fixture(params=on(*SQL))
def kind(request):
    return request.param


def test_result_is_stored_and_counted(results, ledger, group_id):
    claims = [results.store_and_count(group_id, task_id) for task_id in "abc"]

    assert [None, None] == claims[:2]
    assert ["a", ["b"], "c"] == claims[2].header
    assert {"a", "b", "c"} == results.ids() == ledger.counted(group_id)


def test_result_that_is_not_stored_is_not_counted(results, ledger, group_id):
    results.store_and_count(uuid(), "a")

    with pytest.raises(sa.exc.IntegrityError):
        results.store_and_count(group_id, "a")

    assert set() == ledger.counted(group_id)
    assert 0 == ledger.read(group_id).returned


@pytest.mark.parametrize("kind", on("sqlite", "mysql"))
def test_commit_that_fails_stores_and_counts_nothing(results, ledger, group_id):
    for task_id in "ab":
        ledger.count(group_id, Part(task_id))

    with commits_fail(), pytest.raises(sa.exc.DBAPIError):
        results.store_and_count(group_id, "c")

    assert set() == results.ids()
    assert {"a", "b"} == ledger.counted(group_id)
    assert (2, 0) == (ledger.read(group_id).returned, ledger.read(group_id).claimed_until)
    assert results.store_and_count(group_id, "c")


def test_result_of_an_unknown_chord_is_stored(results, ledger):
    group_id = uuid()

    assert results.store_and_count(group_id, "a") is None
    assert {"a"} == results.ids()
    assert set() == ledger.counted(group_id)


def test_result_of_a_part_that_was_counted_is_stored(results, ledger, group_id):
    ledger.count(group_id, Part("a"))

    assert results.store_and_count(group_id, "a") is None
    assert {"a"} == results.ids()
    assert 1 == ledger.read(group_id).returned
