from __future__ import annotations

import contextlib
import re
import time
from datetime import datetime, timezone

import pytest
import sqlalchemy as sa
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.signals import before_task_publish

from chordguard import strict, tolerant
from chordguard.ledger.access import ledger_of
from chordguard.ledger.counters import LARGE
from chordguard.ledger.model import Part
from chordguard.ledger.sql import DatabaseLedger
from chordguard.lifecycle.safety_net import unlock_id
from tests.app_factory import make_app
from tests.harness import UNLOCK, Cluster, running_worker, wait_until

LOOK = re.compile(r"Task celery\.chord_unlock\[([\w-]+)\] (?:retry|succeeded)")

#: As Celery stores it: UTC without a time zone.
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None)

#: Members of a header that is a generator.
MANY = 20

on_sqlite = pytest.mark.parametrize("backend_kind", ["sqlite"])
on_sql = pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql", "mysql"])
soon = pytest.mark.cluster(settings={"chord_unlock_first_delay": 1})


def looks(cluster):
    """Return the ids of the polls that the worker executed."""
    return set(LOOK.findall(cluster.worker.log_text()))


def is_forgotten(cluster, group_id):
    ledger = DatabaseLedger(cluster.app.backend)
    of_chord = {"chord": group_id}
    has_counters = bool(
        ledger._select(
            sa.select(ledger.tables.counter.c.number).where(
                ledger.tables.counter.c.chord_id == sa.bindparam("chord")
            ),
            of_chord,
        )
    )
    return ledger.read(group_id) is None and not ledger.counted(group_id) and not has_counters


def wait_until_forgotten(cluster, *group_ids):
    for group_id in group_ids:
        wait_until(lambda: is_forgotten(cluster, group_id), what="empty ledger")  # noqa: B023


def execute(cluster, statement, **values):
    engine = sa.create_engine(cluster.stack.database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)
    engine.dispose()


@contextlib.contextmanager
def statements():
    """Yield a list of the SQL that this process sends."""
    sent = []

    def note(connection, cursor, statement, *_):
        sent.append(statement)

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)


def look_here(cluster, result, **body):
    """Let the safety net of a chord look in this process; `body` is what `collect` is given."""
    group_id = result.parent.id
    poll = cluster.app.tasks[UNLOCK].apply(
        (group_id, dict(cluster.tasks.collect.s(**body).set(task_id=result.id))),
        {"result": [member.as_tuple() for member in result.parent]},
        task_id=unlock_id(group_id),
    )
    assert poll.successful(), poll.traceback


def echoes(t, record=None, count=5):
    return chord([t.echo.s(i) for i in range(count)], t.collect.s(record=record and record.path))


def nested(t):
    return [
        t.slow.s(1, 0.3),
        chain(t.echo.s(2), group(t.add.s(0), t.add.s(1))),
        chord([t.echo.s(4), t.echo.s(5)], t.tsum.s()),
        chain(t.echo.s(6), t.add.s(1)),
        t.echo.s(8),
    ]


NESTED = [1, [2, 3], 9, 7, 8]


def failing(t):
    return chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], t.collect.s())


class TestBody:
    @on_sqlite
    def test_starts_only_after_a_poll(self, without_fix, record):
        t = without_fix.tasks
        before, started = looks(without_fix), time.time()

        without_fix.run(chord([t.echo.s(1), t.echo.s(2)], t.stamp.s(record.path)))

        assert float(record.lines()[0]) > started + 1
        wait_until(lambda: looks(without_fix) - before, what="a poll")

    @on_sql
    def test_starts_without_a_poll(self, with_fix, record):
        t = with_fix.tasks
        result = chord([t.echo.s(1), t.echo.s(2)], t.stamp.s(record.path)).apply_async()

        assert 2 == with_fix.run(result)
        assert unlock_id(result.parent.id) not in looks(with_fix)
        received = f"Task {UNLOCK}[{unlock_id(result.parent.id)}] received"
        wait_until(lambda: received in with_fix.worker.log_text(), what="the safety net")

    @on_sql
    def test_gets_the_results_in_the_order_and_nesting_of_the_header(self, with_fix):
        t = with_fix.tasks

        assert NESTED == with_fix.run(chord(nested(t), t.collect.s()))

    @on_sqlite
    @pytest.mark.cluster(settings={"chord_fix_ignored_results": False})
    def test_waits_for_ever_for_results_that_are_ignored(self, without_fix):
        t = without_fix.tasks
        canvas = chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s())

        assert without_fix.outcome(canvas, quiet=1.2).hung

    @on_sql
    def test_gets_results_that_are_ignored(self, with_fix):
        t = with_fix.tasks
        header = [
            t.ignored_result.s({"a": [1, None]}),
            t.echo.s(2),
            t.echo.s(3).set(ignore_result=True),
            t.ignored_result.s(None),
        ]

        assert [{"a": [1, None]}, 2, 3, None] == with_fix.run(chord(header, t.collect.s()))

    @on_sqlite
    def test_gets_the_error_of_a_member_whose_result_is_ignored(self, with_fix):
        t = with_fix.tasks
        canvas = chord([t.echo.s(1), t.fail.s().set(ignore_result=True)], t.collect.s())

        assert [1, "ValueError: boom"] == with_fix.run(tolerant(canvas))


class TestEnd:
    @on_sql
    def test_strict_chord_names_the_failed_member(self, with_fix):
        result = failing(with_fix.tasks).apply_async()

        outcome = with_fix.outcome(result)

        assert "FAILURE" == outcome.state, outcome
        assert isinstance(outcome.value, ChordError)
        assert f"Dependency {result.parent[1].id} raised ValueError('boom')" == str(outcome.value)
        wait_until_forgotten(with_fix, result.parent.id)

    @on_sql
    def test_tolerant_chord_gets_the_text(self, with_fix):
        assert [1, "ValueError: boom", 3] == with_fix.run(tolerant(failing(with_fix.tasks)))

    @on_sql
    def test_leaves_no_rows(self, with_fix, gate):
        t = with_fix.tasks
        header = [t.ignored_result.s(1), t.wait_for_file.s(gate.path, 2)]
        result = chord(header, t.collect.s()).apply_async()
        group_id, ledger = result.parent.id, DatabaseLedger(with_fix.app.backend)
        wait_until(lambda: ledger.counted(group_id), what="the first part")
        assert (2, 1) == (ledger.read(group_id).size, ledger.read(group_id).returned)

        gate.open()

        assert [1, 2] == with_fix.run(result)
        wait_until_forgotten(with_fix, group_id)

    @on_sqlite
    def test_timeout_names_the_member_that_never_returns(self, with_fix):
        t = with_fix.tasks
        result = strict(
            chord([t.echo.s(1), t.echo.s(2).set(queue="nowhere")], t.collect.s()), timeout=1
        ).apply_async()

        outcome = with_fix.outcome(result)

        assert "FAILURE" == outcome.state, outcome
        assert "without progress (chord_timeout = 1)" in str(outcome.value)
        assert f"1 of 2 header tasks: {result.parent[1].id}" in str(outcome.value)
        wait_until_forgotten(with_fix, result.parent.id)

    @on_sqlite
    def test_timeout_hands_a_lost_member_to_a_tolerant_body(self, with_fix):
        t = with_fix.tasks
        canvas = chord([t.echo.s(1), t.echo.s(2).set(queue="nowhere")], t.collect.s())

        value, lost = with_fix.run(tolerant(canvas, timeout=1))

        assert 1 == value
        assert lost.startswith("ChordMemberLost: ")


def counting_header(tasks, taken):
    for task in tasks:
        taken.append(task)
        yield task


@contextlib.contextmanager
def sizes_when_sent(taken):
    """Yield a list of how far the generator was each time that a task `echo` was sent."""
    sizes = []

    def note(sender, **_):
        if sender == "tests.echo":
            sizes.append(len(taken))

    # Up to Celery 5.5 a weak receiver that has gone takes the later ones away from a live app.
    before_task_publish.connect(note, weak=False)
    try:
        yield sizes
    finally:
        before_task_publish.disconnect(note)


class TestGenerators:
    @on_sqlite
    def test_is_exhausted_before_the_first_task_is_sent(self, without_fix):
        t, taken = without_fix.tasks, []
        header = counting_header((t.echo.s(i) for i in range(MANY)), taken)

        with sizes_when_sent(taken) as sizes:
            result = chord(header, t.collect.s()).apply_async()

        assert MANY == sizes[0]
        # Some versions of Celery lose such a chord.
        without_fix.outcome(result, quiet=0.7)

    @on_sql
    def test_is_taken_as_tasks_are_sent(self, with_fix):
        t, taken = with_fix.tasks, []
        header = counting_header((t.echo.s(i) for i in range(MANY)), taken)

        with sizes_when_sent(taken) as sizes:
            result = chord(header, t.collect.s()).apply_async()

        assert MANY == len(sizes) == len(taken)
        assert all(size <= sent + 5 for sent, size in enumerate(sizes)), sizes
        assert list(range(MANY)) == with_fix.run(result)
        wait_until_forgotten(with_fix, result.parent.id)

    @on_sqlite
    def test_members_run_before_the_last_is_taken(self, with_fix, record):
        t = with_fix.tasks

        def header():
            yield from (t.echo.s(i, record.path) for i in range(6))
            wait_until(lambda: record.count("echo 0"), what="the first member")
            yield t.echo.s(6)

        assert list(range(7)) == with_fix.run(chord(header(), t.collect.s()))

    @on_sql
    def test_members_may_be_nested(self, with_fix):
        t = with_fix.tasks

        assert NESTED == with_fix.run(chord((task for task in nested(t)), t.collect.s()))

    @pytest.mark.parametrize("count", [0, 1, 2])
    @on_sqlite
    def test_may_be_short(self, with_fix, count):
        t = with_fix.tasks
        header = (t.echo.s(i) for i in range(count))

        assert list(range(count)) == with_fix.run(chord(header, t.collect.s()))

    @on_sqlite
    def test_failed_member_fails_the_chord(self, with_fix):
        t = with_fix.tasks
        result = chord((task for task in (t.fail.s(), t.echo.s(1))), t.collect.s()).apply_async()

        outcome = with_fix.outcome(result)

        assert "FAILURE" == outcome.state, outcome
        assert result.parent[0].id in str(outcome.value)


class TestAddedMembers:
    @on_sqlite
    def test_are_refused(self, without_fix):
        t = without_fix.tasks

        outcome = without_fix.outcome(chord([t.extend_chord.s(2), t.echo.s(1)], t.collect.s()))

        assert "FAILURE" == outcome.state, outcome
        assert "NotImplementedError" in str(outcome.value)

    @on_sql
    def test_come_after_those_of_the_header(self, with_fix):
        t = with_fix.tasks
        canvas = chord([t.extend_chord.s(2), t.echo.s(1)], t.collect.s())

        assert ["extended", 1, 2] == with_fix.run(canvas)

    @on_sql
    def test_may_be_many_at_once(self, with_fix):
        t = with_fix.tasks

        value = with_fix.run(chord([t.extend_chord.s(i) for i in range(10)], t.collect.s()))

        assert ["extended"] * 10 == value[:10]
        assert list(range(10)) == sorted(value[10:])

    @on_sqlite
    def test_may_come_before_the_last_of_a_generator(self, with_fix, record):
        t = with_fix.tasks

        def header():
            yield t.extend_chord.s(9, record.path)
            yield from (t.echo.s(i) for i in range(5))
            wait_until(lambda: record.count("extended"), what="the added member")
            yield t.echo.s(5)

        value = with_fix.run(chord(header(), t.collect.s()))

        assert ["extended", 0, 1, 2, 3, 4, 5, 9] == value

    @on_sqlite
    def test_chord_that_has_ended_takes_none(self, with_fix):
        result = echoes(with_fix.tasks).apply_async()
        with_fix.run(result)
        wait_until_forgotten(with_fix, result.parent.id)

        with pytest.raises(RuntimeError, match=f"chord {result.parent.id} cannot take another"):
            with_fix.app.backend.add_to_chord(
                result.parent.id, with_fix.app.AsyncResult("another member")
            )


@on_sqlite
class TestSwitch:
    @pytest.mark.cluster(patched=False)
    def test_chord_of_a_producer_with_the_patches_is_polled_without_them(self, cluster):
        config = cluster.stack.config({"chord_unlock_first_delay": 0})
        producer = make_app(config, patched=True)
        producer.set_current()
        patched = Cluster(cluster.stack, producer, cluster.worker, config)

        assert list(range(5)) == patched.run(echoes(patched.tasks))

    @pytest.mark.cluster(settings={"chord_ledger": False}, shared_by="without a ledger")
    def test_without_a_ledger_chords_are_polled(self, with_fix):
        result = echoes(with_fix.tasks).apply_async()

        assert list(range(5)) == with_fix.run(result)
        wait_until(lambda: looks(with_fix), what="a poll")
        assert unlock_id(result.parent.id) not in looks(with_fix)
        tables = sa.inspect(sa.create_engine(with_fix.stack.database_url)).get_table_names()
        assert [] == [name for name in tables if name.startswith("chordguard")]

    def test_chord_of_a_producer_without_the_patches_is_polled(self, with_fix):
        producer = make_app(with_fix.config, patched=False)
        producer.set_current()
        unpatched = Cluster(with_fix.stack, producer, with_fix.worker, with_fix.config)
        result = echoes(unpatched.tasks).apply_async()

        assert list(range(5)) == unpatched.run(result)
        assert is_forgotten(with_fix, result.parent.id)


@on_sqlite
class TestSafetyNet:
    @soon
    def test_finds_the_part_of_a_worker_without_the_patches(self, with_fix):
        t, queue = with_fix.tasks, f"{with_fix.stack.name}-unpatched"
        canvas = chord([t.echo.s(1).set(queue=queue), t.echo.s(2)], t.collect.s())

        with running_worker(with_fix.config, patched=False, concurrency=1, queues=[queue]):
            result = canvas.apply_async()
            assert [1, 2] == with_fix.run(result)

        wait_until(lambda: unlock_id(result.parent.id) in looks(with_fix), what="a look")
        wait_until_forgotten(with_fix, result.parent.id)

    @soon
    def test_ends_a_chord_whose_ender_died_before_the_body_was_sent(self, with_fix, record, gate):
        t, ledger = with_fix.tasks, DatabaseLedger(with_fix.app.backend)
        header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2)]
        result = chord(header, t.collect.s(record=record.path)).apply_async()
        group_id = result.parent.id
        assert ledger.claim(group_id)
        until = time.time() + 2
        execute(with_fix, "UPDATE chordguard_chord SET claimed_until = :until", until=until)

        gate.open()

        assert [1, 2] == with_fix.run(result)
        assert time.time() > until
        assert 1 == record.count("body")
        wait_until_forgotten(with_fix, group_id)

    def test_sends_no_second_body_for_an_ender_that_died_after_the_first(self, with_fix, record):
        result = echoes(with_fix.tasks, record).apply_async()
        with_fix.run(result)
        group_id, ledger = result.parent.id, DatabaseLedger(with_fix.app.backend)
        wait_until_forgotten(with_fix, group_id)
        ids = [member.id for member in result.parent]
        ledger.open(group_id, ids, None, time.time() + 60, None)
        execute(
            with_fix,
            "UPDATE chordguard_chord SET returned = size, claimed_until = 1 WHERE id = :id",
            id=group_id,
        )

        look_here(with_fix, result, record=record.path)

        assert is_forgotten(with_fix, group_id)
        wait_until(with_fix.is_idle, what="idle worker")
        assert 1 == record.count("body")

    def test_looks_later_where_the_ledger_cannot_be_reached(self, with_fix, record, monkeypatch):
        result = echoes(with_fix.tasks, record).apply_async()
        with_fix.run(result)
        wait_until_forgotten(with_fix, result.parent.id)
        is_usable, failures = DatabaseLedger.is_usable, iter([OSError("starting up")])

        def is_usable_later(ledger):
            for failure in failures:
                raise failure
            return is_usable(ledger)

        monkeypatch.setattr(DatabaseLedger, "is_usable", is_usable_later)
        look_here(with_fix, result, record=record.path)

        assert next(failures, None) is None
        wait_until(with_fix.is_idle, what="idle worker")
        assert 1 == record.count("body")

    def test_costs_one_select_for_a_chord_that_has_ended(self, with_fix):
        result = echoes(with_fix.tasks).apply_async()
        with_fix.run(result)
        wait_until_forgotten(with_fix, result.parent.id)

        with statements() as sent:
            look_here(with_fix, result)

        assert ["SELECT"] == [statement.split()[0] for statement in sent]


@on_sqlite
class TestTroubles:
    def test_chord_is_polled_while_the_tables_are_away(self, with_fix, record):
        tables = DatabaseLedger(with_fix.app.backend).tables
        engine = sa.create_engine(with_fix.stack.database_url)
        tables.metadata.drop_all(engine)
        try:
            value = with_fix.run(echoes(with_fix.tasks, record, count=3))
        finally:
            tables.metadata.create_all(engine)

        assert [0, 1, 2] == value
        assert 1 == record.count("body")

    def test_cleanup_forgets_abandoned_chords_and_no_others(self, with_fix):
        ledger = DatabaseLedger(with_fix.app.backend)
        assert ledger.is_usable()
        for group_id in ("abandoned", "younger"):
            ledger.open(group_id, ["1", "2"], None, time.time() + 60, None)
            ledger.count(group_id, Part("1"))
        execute(
            with_fix,
            "UPDATE chordguard_chord SET progressed = :then WHERE id = 'abandoned'",
            then=time.time() - 2 * with_fix.app.conf.result_expires - 1,
        )

        with_fix.app.backend.cleanup()

        assert is_forgotten(with_fix, "abandoned")
        assert 1 == ledger.read("younger").returned
        assert {"1"} == ledger.counted("younger")
        ledger.close("younger")


@pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql"])
def test_cleanup_goes_on_where_the_tables_of_the_ledger_were_dropped(clusters, backend_kind):
    with clusters.alone(backend_kind) as cluster:
        backend = cluster.app.backend
        backend.store_result("old", 1, "SUCCESS")
        ledger = ledger_of(backend)
        rows = backend.task_cls
        with ledger._transaction() as connection:
            ledger.tables.metadata.drop_all(connection)
            connection.execute(sa.update(rows).values(date_done=LONG_AGO))

        backend.cleanup()

        assert "PENDING" == backend.get_state("old")


@pytest.mark.parametrize("backend_kind", ["postgresql", "mysql"])
class TestLargeChords:
    """Their members are counted on several rows."""

    SIZE = 3 * LARGE

    @pytest.mark.parametrize("kind", [list, iter], ids=["list", "generator"])
    def test_body_gets_the_results_in_order(self, with_fix, kind):
        echo = with_fix.tasks.echo
        header = kind([echo.s(number) for number in range(self.SIZE)])

        result = chord(header, echo.s(), app=with_fix.app).apply_async()

        assert list(range(self.SIZE)) == result.get(timeout=60)
        wait_until_forgotten(with_fix, result.parent.id)

    def test_error_fails_a_strict_one(self, with_fix):
        t = with_fix.tasks
        header = [t.echo.s(number) for number in range(self.SIZE - 1)] + [t.fail.s()]

        result = strict(chord(header, t.echo.s(), app=with_fix.app)).apply_async()

        with pytest.raises(ValueError, match="boom"):
            result.get(timeout=60)
        wait_until_forgotten(with_fix, result.parent.id)
