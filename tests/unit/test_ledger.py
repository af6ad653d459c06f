from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from celery import Celery
from celery.utils import uuid
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from chordguard.ledger.database import DatabaseLedger, Tables
from chordguard.ledger.model import CLAIM_SECONDS, Part
from tests.harness import wait_until

THREADS = 8


@pytest.fixture(scope="module")
def new_database(servers, tmp_path_factory):
    """Return a function that creates an empty database and returns its URL."""
    with contextlib.ExitStack() as closing:

        def create(kind):
            if kind == "sqlite":
                return f"sqlite:///{tmp_path_factory.mktemp('database') / 'results.sqlite'}"
            server = servers.get(kind)
            url = server.kind.create_database(server)
            closing.callback(server.kind.drop_database, server, url)
            # PyMySQL reads all certificates for each connection.
            return f"{url}?ssl_disabled=true" if kind == "mysql" else url

        yield create


@pytest.fixture(scope="module")
def shared(new_database):
    """Return a function that returns the ledger that the tests share."""
    ledgers = {}

    def get(kind):
        if kind not in ledgers:
            ledgers[kind] = ledger_on(new_database(kind))
        return ledgers[kind]

    return get


def ledger_on(url):
    app = Celery("ledger", broker="memory://", backend=f"db+{url}", set_as_current=False)
    return DatabaseLedger(app.backend)


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def kind(request):
    return request.param


@pytest.fixture
def ledger(kind, require, shared):
    require(*({kind} - {"sqlite"}))
    ledger = shared(kind)
    assert ledger.is_usable()
    return ledger


@pytest.fixture
def group_id(ledger):
    """The id of a chord of three."""
    group_id = uuid()
    ledger.open(group_id, ["a", ["b"], "c"])
    yield group_id
    ledger.close(group_id)


def execute(ledger, statement, **values):
    engine = sa.create_engine(ledger.backend.url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)
    engine.dispose()


def at_once(calls):
    """Return what the functions return that many threads call at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


class TestOpening:
    def test_chord_is_known_from_then_on(self, ledger, group_id):
        record = ledger.read(group_id)

        assert (3, 0, 0) == (record.size, record.returned, record.claimed_until)
        assert time.time() - 60 < record.progressed <= time.time()
        assert ledger.read(uuid()) is None

    def test_opened_twice_goes_on(self, ledger, group_id):
        ledger.count(group_id, Part("a"))

        ledger.open(group_id, ["x"])

        assert (3, 1) == (ledger.read(group_id).size, ledger.read(group_id).returned)

    def test_members_may_be_told_later(self, ledger):
        group_id = uuid()
        ledger.open(group_id, None)
        assert ledger.count(group_id, Part("a")) is None
        assert ledger.read(group_id).size is None

        ledger.set_header(group_id, ["a", ["b"]])

        assert ["a", ["b"]] == ledger.count(group_id, Part("b")).header

    def test_members_that_are_told_after_all_of_them_returned_leave_the_chord_to_be_claimed(
        self, ledger
    ):
        group_id = uuid()
        ledger.open(group_id, None)
        assert ledger.count(group_id, Part("a")) is None

        ledger.set_header(group_id, ["a"])

        assert ["a"] == ledger.claim(group_id).header

    def test_header_may_be_large(self, ledger):
        group_id, header = uuid(), [uuid() for _ in range(10_000)]

        ledger.open(group_id, header)

        assert header == ledger.claim(group_id).header


class TestCounting:
    def test_last_part_claims_the_chord(self, ledger, group_id):
        claims = [ledger.count(group_id, Part(task_id)) for task_id in "bca"]

        assert [None, None] == claims[:2]
        assert (group_id, ["a", ["b"], "c"]) == (claims[2].group_id, claims[2].header)
        left = ledger.read(group_id).claimed_until - time.time()
        assert CLAIM_SECONDS - 30 < left <= CLAIM_SECONDS

    def test_part_counts_once(self, ledger, group_id):
        for task_id in "aabab":
            assert ledger.count(group_id, Part(task_id)) is None

        assert 2 == ledger.read(group_id).returned
        assert {"a", "b"} == ledger.counted(group_id)

    def test_last_part_claims_once(self, ledger, group_id):
        claims = [ledger.count(group_id, Part(task_id)) for task_id in "abccc"]

        assert 1 == len(list(filter(None, claims)))
        assert claims[2]

    def test_part_is_progress(self, ledger, group_id):
        execute(ledger, "UPDATE chordguard_chord SET progressed = 1 WHERE id = :id", id=group_id)

        ledger.count(group_id, Part("a"))

        assert time.time() - 60 < ledger.read(group_id).progressed

    def test_parts_that_come_at_once_claim_once(self, ledger):
        group_id, members = uuid(), [uuid() for _ in range(24)]
        ledger.open(group_id, members)

        claims = at_once(
            lambda member=member: ledger.count(group_id, Part(member)) for member in members * 2
        )

        (claim,) = filter(None, claims)
        assert members == claim.header
        assert len(members) == ledger.read(group_id).returned
        assert set(members) == ledger.counted(group_id)

    def test_parts_of_many_chords_do_not_mix(self, ledger):
        group_ids = [uuid() for _ in range(6)]
        for group_id in group_ids:
            ledger.open(group_id, ["a", "b", "c", "d"])

        claims = at_once(
            lambda group_id=group_id, task_id=task_id: ledger.count(group_id, Part(task_id))
            for task_id in "abcd"
            for group_id in group_ids
        )

        assert sorted(group_ids) == sorted(claim.group_id for claim in claims if claim)

    def test_part_of_an_unknown_chord_leaves_nothing(self, ledger):
        group_id = uuid()

        assert ledger.count(group_id, Part("a")) is None
        assert set() == ledger.counted(group_id)

    def test_late_part_of_a_chord_that_has_ended_leaves_nothing(self, ledger, group_id):
        ledger.close(group_id)

        assert ledger.count(group_id, Part("a")) is None
        assert set() == ledger.counted(group_id)

    def test_last_part_claims_nothing_while_somebody_ends_the_chord(self, ledger, group_id):
        ledger.claim(group_id)

        assert [None] * 3 == [ledger.count(group_id, Part(task_id)) for task_id in "abc"]
        assert 3 == ledger.read(group_id).returned

    def test_results_that_are_brought_along_are_kept(self, ledger, group_id):
        payload = b'\x00\xff["\xc5\xbe"]' * 20_000
        ledger.count(group_id, Part("a", payload))
        ledger.count(group_id, Part("b"))
        ledger.count(group_id, Part("a", b"second"))

        assert {"a": payload} == ledger.payloads(group_id)


class TestClaiming:
    def test_chord_is_claimed_once(self, ledger, group_id):
        claims = at_once([lambda: ledger.claim(group_id)] * THREADS)

        (claim,) = filter(None, claims)
        assert ["a", ["b"], "c"] == claim.header

    def test_unknown_chord_cannot_be_claimed(self, ledger):
        assert ledger.claim(uuid()) is None

    def test_released_chord_can_be_claimed(self, ledger, group_id):
        ledger.release(ledger.claim(group_id))

        assert 0 == ledger.read(group_id).claimed_until
        assert ledger.claim(group_id)

    def test_expired_claim_is_none(self, ledger, group_id):
        first = ledger.claim(group_id)
        execute(ledger, "UPDATE chordguard_chord SET claimed_until = 1 WHERE id = :id", id=group_id)

        second = ledger.claim(group_id)
        ledger.release(first)

        assert second.token != first.token
        assert ledger.claim(group_id) is None

    def test_last_part_claims_what_an_expired_claim_was_for(self, ledger, group_id):
        ledger.claim(group_id)
        execute(ledger, "UPDATE chordguard_chord SET claimed_until = 1 WHERE id = :id", id=group_id)

        assert [False, False, True] == [
            ledger.count(group_id, Part(task_id)) is not None for task_id in "abc"
        ]


class TestAdding:
    def test_members_come_after_those_of_the_header(self, ledger, group_id):
        assert ledger.add(group_id, [["d", "e"], "f"])

        assert 6 == ledger.read(group_id).size
        assert ["a", ["b"], "c", ["d", "e"], "f"] == ledger.claim(group_id).header

    def test_members_that_come_at_once_are_all_there(self, ledger, group_id):
        members = [uuid() for _ in range(16)]

        assert all(
            at_once(lambda member=member: ledger.add(group_id, [member]) for member in members)
        )

        assert 19 == ledger.read(group_id).size
        header = ledger.claim(group_id).header
        assert ["a", ["b"], "c"] == header[:3]
        assert sorted(members) == sorted(header[3:])

    def test_chord_that_is_being_ended_takes_none(self, ledger, group_id):
        ledger.claim(group_id)

        assert not ledger.add(group_id, ["d"])
        assert 3 == ledger.read(group_id).size

    def test_unknown_chord_takes_none(self, ledger):
        assert not ledger.add(uuid(), ["d"])


class TestClosing:
    def test_nothing_is_left(self, ledger, group_id):
        ledger.count(group_id, Part("a", b"payload"))

        for _ in range(2):
            ledger.close(group_id)

        assert ledger.read(group_id) is None
        assert set() == ledger.counted(group_id)

    def test_chords_without_progress_are_forgotten(self, ledger, group_id):
        abandoned = uuid()
        ledger.open(abandoned, ["a", "b"])
        ledger.count(abandoned, Part("a"))
        execute(ledger, "UPDATE chordguard_chord SET progressed = 100 WHERE id = :id", id=abandoned)

        assert 0 == ledger.forget_abandoned(100)
        assert 1 == ledger.forget_abandoned(101)
        assert ledger.read(abandoned) is None
        assert set() == ledger.counted(abandoned)
        assert ledger.read(group_id)


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


class TestTransactions:
    def test_result_is_stored_and_counted(self, results, ledger, group_id):
        claims = [results.store_and_count(group_id, task_id) for task_id in "abc"]

        assert [None, None] == claims[:2]
        assert ["a", ["b"], "c"] == claims[2].header
        assert {"a", "b", "c"} == results.ids() == ledger.counted(group_id)

    def test_result_that_is_not_stored_is_not_counted(self, results, ledger, group_id):
        results.store_and_count(uuid(), "a")

        with pytest.raises(sa.exc.IntegrityError):
            results.store_and_count(group_id, "a")

        assert set() == ledger.counted(group_id)
        assert 0 == ledger.read(group_id).returned

    @pytest.mark.parametrize("kind", ["sqlite", "mysql"])
    def test_commit_that_fails_stores_and_counts_nothing(self, results, ledger, group_id):
        for task_id in "ab":
            ledger.count(group_id, Part(task_id))

        with commits_fail(), pytest.raises(sa.exc.DBAPIError):
            results.store_and_count(group_id, "c")

        assert set() == results.ids()
        assert {"a", "b"} == ledger.counted(group_id)
        assert (2, 0) == (ledger.read(group_id).returned, ledger.read(group_id).claimed_until)
        assert results.store_and_count(group_id, "c")

    def test_result_of_an_unknown_chord_is_stored(self, results, ledger):
        group_id = uuid()

        assert results.store_and_count(group_id, "a") is None
        assert {"a"} == results.ids()
        assert set() == ledger.counted(group_id)

    def test_result_of_a_part_that_was_counted_is_stored(self, results, ledger, group_id):
        ledger.count(group_id, Part("a"))

        assert results.store_and_count(group_id, "a") is None
        assert {"a"} == results.ids()
        assert 1 == ledger.read(group_id).returned


@contextlib.contextmanager
def first_answer_lost():
    """Have the first commit done, but seem to have failed."""
    lost = []

    def lose(connection):
        if not lost:
            connection.connection.dbapi_connection.commit()
            lost.append(sa.exc.OperationalError("COMMIT", {}, ConnectionError("lost")))
            raise lost[0]

    sa.event.listen(Engine, "commit", lose)
    try:
        yield
    finally:
        sa.event.remove(Engine, "commit", lose)
    assert lost


class TestLostAnswers:
    """What was done although it seems to have failed is not done twice."""

    def test_members_that_are_told_are_there_once(self, ledger):
        group_id = uuid()
        ledger.open(group_id, None)

        with first_answer_lost():
            ledger.set_header(group_id, ["a", ["b"]])

        assert 2 == ledger.read(group_id).size
        assert ["a", ["b"]] == ledger.claim(group_id).header

    def test_members_that_are_added_are_there_once(self, ledger, group_id):
        with first_answer_lost():
            assert ledger.add(group_id, [["d"], "e"])

        assert 5 == ledger.read(group_id).size
        assert ["a", ["b"], "c", ["d"], "e"] == ledger.claim(group_id).header

    def test_part_counts_once(self, ledger, group_id):
        with first_answer_lost():
            ledger.count(group_id, Part("a"))

        assert 1 == ledger.read(group_id).returned

    def test_chord_is_opened_and_closed(self, ledger):
        group_id = uuid()
        with first_answer_lost():
            ledger.open(group_id, ["a"])
        assert 1 == ledger.read(group_id).size

        with first_answer_lost():
            ledger.close(group_id)
        assert ledger.read(group_id) is None


@pytest.fixture
def dropped(ledger):
    """Drop the tables; a function creates them again."""
    engine = sa.create_engine(ledger.backend.url)
    ledger.tables.metadata.drop_all(engine)
    yield lambda: ledger.tables.metadata.create_all(engine)
    ledger.tables.metadata.create_all(engine)
    engine.dispose()


#: How many transactions of the database at hand wait for another one. The table of transactions
#: of InnoDB is not renewed while somebody keeps reading it: there a statement that runs for a
#: second is one that waits.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE command = 'Query' AND time >= 1 AND db = database() AND id <> connection_id()",
}


class TestRaces:
    @pytest.mark.parametrize("task_id", ["a", "b"], ids=["counted before", "not counted yet"])
    @pytest.mark.parametrize("kind", WAITING)
    def test_part_that_comes_while_the_chord_is_closed_leaves_nothing(
        self, kind, ledger, group_id, task_id
    ):
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


class TestFailures:
    def test_what_failed_is_tried_again(self, ledger, dropped):
        group_id, events = uuid(), []

        def note(context):
            events.append("failed")

        def mend(*_):
            if ["failed"] == events:
                events.append("mended")
                dropped()

        sa.event.listen(Engine, "handle_error", note)
        sa.event.listen(Pool, "checkin", mend)
        try:
            ledger.open(group_id, ["a"])
        finally:
            sa.event.remove(Engine, "handle_error", note)
            sa.event.remove(Pool, "checkin", mend)

        assert ["failed", "mended"] == events[:2]
        assert 1 == ledger.read(group_id).size

    def test_what_fails_each_time_is_raised_and_the_tables_looked_for_again(self, ledger, dropped):
        for call in (lambda: ledger.count(uuid(), Part("a")), lambda: ledger.read(uuid())):
            with pytest.raises(sa.exc.DatabaseError):
                call()

        assert ledger.is_usable()
        assert ledger.read(uuid()) is None

    def test_cleanup_creates_tables_that_were_dropped(self, ledger, dropped):
        assert 0 == ledger.forget_abandoned(time.time())
        assert ledger.read(uuid()) is None


class TestTables:
    def test_several_may_create_them_at_once(self, kind, require, new_database):
        require(*({kind} - {"sqlite"}))
        url = new_database(kind)
        # A result backend creates its own tables first, which do not concern us here.
        ledgers = [ledger_on(url) for _ in range(THREADS)]
        ledgers[0].backend.ResultSession().close()

        assert all(at_once(ledger._create_tables for ledger in ledgers))

        tables = sa.inspect(sa.create_engine(url)).get_table_names()
        assert {"chordguard_chord", "chordguard_chord_member"} <= set(tables)


def test_tables_are_where_the_app_wants_them():
    app = Celery("ledger", broker="memory://", set_as_current=False)

    def names(**settings):
        app.conf.update({"database_table_names": {}, "database_table_schemas": {}, **settings})
        tables = Tables.of(app)
        return tables.chord.fullname, tables.member.fullname

    assert ("chordguard_chord", "chordguard_chord_member") == names()
    assert ("s.chordguard_chord", "s.chordguard_chord_member") == names(
        database_table_schemas={"task": "s"}
    )
    assert ("c.chordguard_chord", "c.chordguard_chord_member") == names(
        database_table_schemas={"task": "s", "chord": "c"}
    )
    assert ("c.x", "m.y") == names(
        database_table_names={"chord": "x", "chord_member": "y"},
        database_table_schemas={"chord": "c", "chord_member": "m"},
    )
    assert Tables.of(app) is Tables.of(app)
