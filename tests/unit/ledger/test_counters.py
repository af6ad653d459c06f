from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from chordguard.ledger import counters, parts
from chordguard.ledger.model import Part
from chordguard.ledger.sql import DatabaseLedger
from chordguard.upstream.backends import is_django
from tests.unit.ledger.chords import THREADS, count_during, on, rewrite, start
from tests.unit.ledger.test_sql_transactions import Results, commits_fail

SIZE = counters.LARGE + 22
IDS = [f"member-{number}" for number in range(SIZE)]


@pytest.mark.parametrize(
    ("size", "count"),
    [(1, 0), (127, 0), (128, 8), (255, 8), (256, 16), (1000, 32), (10_000, 256), (10**6, 256)],
)
def test_large_chords_have_counters(size, count):
    assert count == counters.how_many(size)


def test_number_tells_how_many_there_are():
    numbers = {count: {counters.number_of(id_, count) for id_ in IDS} for count in (8, 16)}

    assert set(range(8, 16)) == numbers[8]
    assert set(range(16, 32)) == numbers[16]


def test_what_is_known_of_chords_takes_no_more_and_more_memory():
    for number in range(3 * counters.MOST_KNOWN):
        counters.note(f"chord-{number}", 8)

    assert 8 == counters.known(f"chord-{3 * counters.MOST_KNOWN - 1}")
    assert len(counters._known) <= counters.MOST_KNOWN


in_sqlalchemy = pytest.mark.parametrize("kind", on("postgresql", "mysql"))


@pytest.fixture(params=on("postgresql", "mysql", "django-postgresql", "django-mysql"))
def kind(request):
    return request.param


@pytest.fixture
def group_id(ledger):
    """The id of a chord that is spread over counters."""
    group_id = start(ledger, IDS)
    yield group_id
    ledger.close(group_id)
    assert {} == rows_of(ledger, group_id)


def rows_of(ledger, group_id):
    """Return how many rows of a chord each table has."""
    if is_django(ledger.backend):
        rows = {
            "chord": ledger._chord(group_id),
            "member": ledger._members(group_id),
            "counter": ledger._counters(group_id),
        }
        return {name: found.count() for name, found in rows.items() if found.exists()}
    tables = ledger.tables
    columns = {
        "chord": tables.chord.c.id,
        "member": tables.member.c.chord_id,
        "counter": tables.counter.c.chord_id,
    }
    found = {
        name: len(ledger._select(sa.select(column).where(column == group_id), {}))
        for name, column in columns.items()
    }
    return {name: count for name, count in found.items() if count}


def other_process(ledger):
    """Return a ledger that knows nothing of the chords so far."""
    counters._known.clear()
    return type(ledger)(ledger.backend)


class TestCounting:
    def test_last_part_claims_the_chord(self, ledger, group_id):
        claims = [ledger.count(group_id, Part(id_)) for id_ in IDS]

        assert [None] * (SIZE - 1) == claims[:-1]
        assert (group_id, IDS) == (claims[-1].group_id, claims[-1].header)
        record = ledger.read(group_id)
        assert (SIZE, SIZE, True) == (record.size, record.returned, record.is_complete)
        assert record.claimed_until > time.time()

    def test_one_claims_it_if_all_come_at_once(self, ledger, group_id):
        with ThreadPoolExecutor(THREADS) as pool:
            claims = list(pool.map(lambda id_: ledger.count(group_id, Part(id_)), [*IDS, *IDS]))

        assert 1 == len({claim.token for claim in claims if claim})
        assert SIZE == ledger.read(group_id).returned
        assert set(IDS) == ledger.counted(group_id)

    def test_part_counts_once(self, ledger, group_id):
        for _ in range(3):
            assert ledger.count(group_id, Part(IDS[0])) is None

        assert 1 == ledger.read(group_id).returned

    def test_members_that_failed_are_counted(self, ledger, group_id):
        for number, id_ in enumerate(IDS[:30]):
            ledger.count(group_id, Part(id_, has_failed=number % 3 == 0))

        assert (30, 10) == (ledger.read(group_id).returned, ledger.read(group_id).failed)

    def test_part_is_progress(self, ledger, group_id):
        rewrite(ledger, group_id, "progressed", 1.0)
        ledger.count(group_id, Part(IDS[0]))

        assert time.time() - 60 < ledger.read(group_id).progressed
        assert not ledger.forget_abandoned(time.time() - 60)
        assert ledger.read(group_id)

    def test_part_of_another_process_is_counted(self, ledger, group_id):
        for id_ in IDS[:-1]:
            ledger.count(group_id, Part(id_))

        assert other_process(ledger).count(group_id, Part(IDS[-1]))

    @pytest.mark.parametrize("mistaken", [16, 256])
    def test_who_is_mistaken_in_how_many_there_are_counts_right(self, ledger, group_id, mistaken):
        claims = []
        for id_ in IDS:
            counters.note(group_id, mistaken)
            claims.append(ledger.count(group_id, Part(id_)))

        assert [None, True] == [claim and True for claim in claims[-2:]]

    def test_small_chord_that_is_thought_to_be_large_is_counted(self, ledger):
        group_id = start(ledger, ["a", "b"])
        counters.note(group_id, 8)

        claims = [ledger.count(group_id, Part(id_)) for id_ in "ab"]

        assert [None, True] == [claim and True for claim in claims]
        ledger.close(group_id)

    @in_sqlalchemy
    def test_parts_do_not_wait_for_the_row_of_their_chord(self, ledger, group_id):
        engine = sa.create_engine(ledger.backend.url)
        ledger.count(group_id, Part(IDS[0]))
        with engine.begin() as other, ThreadPoolExecutor(1) as pool:
            other.execute(ledger.tables.lock, {"chord": group_id, "now": time.time()})
            counted = pool.submit(ledger.count, group_id, Part(IDS[1]))
            assert counted.result(timeout=30) is None
        engine.dispose()

    @in_sqlalchemy
    def test_commit_that_fails_stores_and_counts_nothing(self, ledger, group_id):
        if ledger.backend.url.startswith("postgresql"):
            pytest.skip("it stores and counts by one statement")
        results = Results(ledger)
        ledger.count(group_id, Part(IDS[0]))

        with commits_fail(), pytest.raises(sa.exc.DBAPIError):
            results.store_and_count(group_id, IDS[1])

        assert set() == results.ids()
        assert 1 == ledger.read(group_id).returned
        results.store_and_count(group_id, IDS[1])
        assert {IDS[1]} == results.ids()
        results.table.drop(results.engine)


class TestLooking:
    """Who fills a counter looks whether all are full, when that is committed."""

    @pytest.fixture
    def unseen(self, ledger, group_id, monkeypatch):
        """All parts were counted, and who counted the last one died before it looked."""
        monkeypatch.setattr(type(ledger), "_claim_if_whole", lambda *_: None)
        for id_ in IDS:
            ledger.count(group_id, Part(id_))
        monkeypatch.undo()
        return group_id

    def test_chord_is_complete(self, ledger, unseen):
        record = ledger.read(unseen)

        assert record.is_complete
        assert 0 == record.claimed_until
        assert IDS == ledger.claim(unseen).header

    def test_part_that_comes_again_looks(self, ledger, unseen):
        assert IDS == ledger.count(unseen, Part(IDS[0])).header


class TestMembersToldLater:
    @pytest.mark.parametrize("done", [0, 1, 20, SIZE - 1])
    def test_chord_is_spread_then(self, ledger, done):
        group_id = start(ledger, None)
        early = [ledger.count(group_id, Part(id_, has_failed=True)) for id_ in IDS[:done]]
        assert [None] * done == early

        ledger.set_header(group_id, IDS)

        assert 8 == rows_of(ledger, group_id)["counter"]
        claims = [ledger.count(group_id, Part(id_)) for id_ in [*IDS[:done], *IDS[done:]]]
        assert [True] == [True for claim in claims if claim]
        assert claims[-1].header == IDS
        record = ledger.read(group_id)
        assert (SIZE, SIZE, done) == (record.size, record.returned, record.failed)
        ledger.close(group_id)
        assert {} == rows_of(ledger, group_id)

    def test_told_twice_is_told_once(self, ledger):
        group_id = start(ledger, None)
        for _ in range(2):
            ledger.set_header(group_id, IDS)
            ledger.count(group_id, Part(IDS[0]))

        assert 8 == rows_of(ledger, group_id)["counter"]
        assert (SIZE, 1) == (ledger.read(group_id).size, ledger.read(group_id).returned)
        ledger.close(group_id)

    @in_sqlalchemy
    def test_part_that_waits_for_it_is_counted(self, ledger):
        group_id = start(ledger, None)
        tables, this = ledger.tables, {"chord": group_id}
        number = counters.how_many(SIZE)

        def tell(connection):
            connection.execute(tables.lock, {**this, "now": time.time()})
            assert number == parts.spread(tables, connection, group_id, IDS)
            connection.execute(tables.spread, {**this, "number": number})

        assert (True, None) == count_during(ledger, group_id, Part(IDS[0]), tell)

        on_counter = {**this, "counter": counters.number_of(IDS[0], number)}
        read = sa.select(tables.counter.c.returned).where(tables.this_counter)
        assert [(1,)] == ledger._select(read, on_counter)
        assert 1 == ledger.read(group_id).returned
        ledger.close(group_id)


class TestMembersAdded:
    def test_they_are_expected(self, ledger, group_id):
        for id_ in IDS[:-1]:
            ledger.count(group_id, Part(id_))

        assert ledger.add(group_id, ["added", ["nested"]])

        late = [IDS[-1], "added", "nested"]
        claims = [ledger.count(group_id, Part(id_)) for id_ in late]
        assert [None, None, True] == [claim and True for claim in claims]
        assert SIZE + 2 == ledger.read(group_id).size

    def test_chord_that_becomes_large_goes_on(self, ledger):
        group_id = start(ledger, ["a", "b"])
        ledger.count(group_id, Part("a"))

        ledger.add(group_id, IDS)

        claims = [ledger.count(group_id, Part(id_)) for id_ in ["b", *IDS]]
        assert [None, True] == [claim and True for claim in claims[-2:]]
        ledger.close(group_id)


class TestClosing:
    def test_late_part_leaves_nothing(self, ledger, group_id):
        ledger.count(group_id, Part(IDS[0]))
        ledger.close(group_id)

        assert [None, None] == [ledger.count(group_id, Part(id_)) for id_ in IDS[:2]]
        assert {} == rows_of(ledger, group_id)

    @in_sqlalchemy
    @pytest.mark.parametrize("table", ["chord", "counter"])
    def test_part_that_comes_meanwhile_leaves_nothing(self, ledger, group_id, table):
        other = DatabaseLedger(ledger.backend)
        ledger.count(group_id, Part(IDS[0]))
        counted_meanwhile = []

        def count_meanwhile(connection, cursor, statement, *_):
            name = getattr(ledger.tables, table).name
            if statement.startswith(f"DELETE FROM {name} ") and not counted_meanwhile:
                counted_meanwhile.append(IDS[1])
                other.count(group_id, Part(IDS[1]))

        sa.event.listen(sa.engine.Engine, "before_cursor_execute", count_meanwhile)
        try:
            ledger.close(group_id)
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", count_meanwhile)

        assert [IDS[1]] == counted_meanwhile
        assert {} == rows_of(ledger, group_id)

    @in_sqlalchemy
    def test_part_that_waits_leaves_nothing(self, ledger, group_id):
        ledger.count(group_id, Part(IDS[0]))
        tables, this = ledger.tables, {"chord": group_id}

        def close(connection):
            connection.execute(tables.remove, this)
            connection.execute(tables.remove_counters, this)

        _, claim = count_during(ledger, group_id, Part(IDS[1]), close)

        assert claim is None
        assert {IDS[0]} == ledger.counted(group_id)


@pytest.mark.parametrize("kind", on("sqlite", "django-sqlite"))
def test_sqlite_counts_on_the_row_of_the_chord(ledger):
    group_id = start(ledger, IDS)

    claims = [ledger.count(group_id, Part(id_)) for id_ in IDS]

    assert [None, True] == [claim and True for claim in claims[-2:]]
    assert {"chord": 1, "member": SIZE} == rows_of(ledger, group_id)
    ledger.close(group_id)
