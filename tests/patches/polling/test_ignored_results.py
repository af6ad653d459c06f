from __future__ import annotations

import pytest
from celery import chain, chord, group, states
from celery.app.task import Context
from celery.utils import uuid

from chordguard import strict, tolerant
from chordguard.upstream.results import read_results
from tests.app_factory import make_app
from tests.harness import UNLOCK, wait_until
from tests.patches.database.test_counted_chords import statements
from tests.tasks import PREFIX

#: Where a ledger counts chords it keeps what is not stored.
pytestmark = pytest.mark.cluster(settings={"chord_ledger": False})
counted = pytest.mark.cluster(settings={"chord_ledger": True})

on_sqlite = pytest.mark.parametrize("backend_kind", ["sqlite"])
on_sql = pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql", "mysql"])
#: Polled in a database and elsewhere, and counted by Celery.
everywhere = pytest.mark.parametrize(
    "backend_kind",
    ["sqlite", pytest.param("filesystem", marks=pytest.mark.nightly), "memcached"],
)


def succeeding(t):
    return chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s())


def revoked(t):
    return chord([t.ignored_result.s(1).set(expires=-1), t.echo.s(2)], t.collect_types.s())


def failing(t):
    return chord([t.forgotten_step.s(does="fails", name="boom"), t.echo.s(2)], t.collect.s())


def failing_step(t):
    """Return a chord of which a member never runs: the step before it fails."""
    step = t.forgotten_step.s(does="fails", name="boom")
    return chord([chain(step, t.echo.s()), t.echo.s(2)], t.collect.s())


#: Chords, and what a tolerant one gives.
CANVASES = {
    succeeding: [1, 2],
    failing: ["ValueError: boom", 2],
    revoked: ["TaskRevokedError", "int"],
    failing_step: ["ValueError: boom", 2],
}


def stored(cluster, result):
    """Return the members of a chord that have a stored result."""
    ids = [member.id for member in result.parent]
    return [id_ for id_ in ids if id_ in read_results(cluster.app.backend, ids)]


@on_sqlite
def test_chord_waits_for_ever(without_fix):
    t = without_fix.tasks
    results = [tolerant(canvas(t)).apply_async() for canvas in CANVASES]

    # They wait together.
    for result, quiet in zip(results, [1.2, 0.1, 0.1, 0.1], strict=True):
        assert without_fix.outcome(result, quiet=quiet).hung


class TestChord:
    @everywhere
    @pytest.mark.parametrize("canvas", CANVASES)
    def test_gets_what_the_member_gave(self, with_fix, canvas):
        assert CANVASES[canvas] == with_fix.run(tolerant(canvas(with_fix.tasks)))

    @on_sql
    def test_gets_any_value(self, with_fix):
        t = with_fix.tasks
        header = [t.ignored_result.s({"a": [1, None]}), t.ignored_result.s(None)]
        header.append(t.echo.s(3).set(ignore_result=True))

        assert [{"a": [1, None]}, None, 3] == with_fix.run(chord(header, t.collect.s()))

    @on_sqlite
    def test_gets_the_results_of_groups_and_of_chords(self, with_fix):
        t = with_fix.tasks
        header = [
            chain(t.echo.s(1), group(t.ignored_result.s(), t.echo.s())),
            chord([t.ignored_result.s(2)], t.collect.s().set(ignore_result=True)),
        ]

        assert [[1, 1], [2]] == with_fix.run(chord(header, t.collect.s()))

    @on_sqlite
    def test_fails_with_the_error_of_its_member(self, with_fix):
        outcome = with_fix.outcome(strict(failing(with_fix.tasks)))

        assert "FAILURE" == outcome.state
        assert outcome.result.parent[0].id in str(outcome.value)
        assert "boom" in str(outcome.value)

    @on_sqlite
    def test_value_can_be_waited_for(self, with_fix):
        assert [1, 2] == succeeding(with_fix.tasks).apply_async().get(timeout=20)

    @everywhere
    @pytest.mark.parametrize("canvas", [succeeding, failing])
    def test_has_its_results_forgotten(self, with_fix, canvas):
        result = tolerant(canvas(with_fix.tasks)).apply_async()
        with_fix.run(result)

        wait_until(lambda: len(stored(with_fix, result)) < 2, what="a forgotten result")
        assert [result.parent[1].id] == stored(with_fix, result)

    @on_sqlite
    @counted
    def test_that_is_counted_gets_the_error_of_a_step(self, with_fix):
        """The step that never runs does not ignore its result: the ledger looks for its row."""
        canvas = failing_step
        assert CANVASES[canvas] == with_fix.run(tolerant(canvas(with_fix.tasks)))

    @on_sqlite
    @counted
    def test_of_a_producer_without_the_patches(self, with_fix):
        """No ledger knows it, though the worker has one."""
        producer = make_app(with_fix.config, patched=False)
        try:
            header = [producer.tasks[f"{PREFIX}ignored_result"].s(1)]
            result = chord(header, producer.tasks[f"{PREFIX}collect"].s(), app=producer)()
            assert [1] == with_fix.run(result)
            wait_until(lambda: not stored(with_fix, result), what="a forgotten result")
        finally:
            producer.close()
            with_fix.app.set_current()

    @on_sqlite
    def test_that_is_polled_once_more_is_left_alone(self, with_fix, record):
        """A poller may be delivered again when it has ended its chord and forgotten the results."""
        t = with_fix.tasks
        canvas = strict(chord([t.ignored_result.s(1)], t.collect.s(record=record.path)))
        result = canvas.apply_async()
        with_fix.run(result)
        wait_until(lambda: not stored(with_fix, result), what="a forgotten result")

        poll = with_fix.app.tasks[UNLOCK].apply(
            (result.parent.id, dict(canvas.body.clone(task_id=result.id))),
            {"result": [member.as_tuple() for member in result.parent], "max_retries": 0},
        )

        assert poll.successful(), poll.traceback
        assert ("SUCCESS", [1]) == (result.state, result.result)
        assert 1 == record.count("body")


@pytest.fixture
def part(with_fix):
    """Return a function that returns a part here; what it gives is the stored state."""

    def part(name, state, *, is_stored=False, in_chord=True, **options):
        app = with_fix.app
        body = dict(with_fix.tasks.collect.s().set(task_id=uuid()))
        request = Context(
            id=uuid(), task=PREFIX + name, group=uuid(), chord=body if in_chord else None, **options
        )
        result = 1 if state == states.SUCCESS else ValueError("boom")
        if is_stored:
            app.backend.store_result(request.id, result, state, traceback="theirs")
        app.backend.on_chord_part_return(request, state, result)
        return app.backend.get_task_meta(request.id)

    return part


@on_sqlite
class TestPart:
    @pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE, states.REVOKED])
    def test_whose_result_is_ignored_is_stored(self, part, state):
        assert state == part("ignored_result", state)["status"]

    def test_whose_failure_is_stored_all_the_same_keeps_that(self, part):
        """``store_errors_even_if_ignored``: somebody wants it, with its traceback."""
        meta = part("ignored_result", states.FAILURE, is_stored=True)

        assert ("FAILURE", "theirs") == (meta["status"], meta["traceback"])

    @pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE])
    def test_of_no_chord_is_not_stored(self, part, state):
        assert "PENDING" == part("ignored_result", state, in_chord=False)["status"]

    def test_whose_result_is_not_ignored_costs_no_statement(self, part, with_fix):
        request = Context(id=uuid(), task=f"{PREFIX}echo", group=uuid(), chord={"task": "body"})
        with statements() as sent:
            with_fix.app.backend.on_chord_part_return(request, states.SUCCESS, 1)

        assert [] == sent


@on_sqlite
def test_task_of_no_chord_is_not_stored(with_fix):
    result = with_fix.tasks.ignored_result.delay(1)
    wait_until(lambda: f"[{result.id}] succeeded" in with_fix.worker.log_text(), what="the task")

    assert {} == read_results(with_fix.app.backend, [result.id])
