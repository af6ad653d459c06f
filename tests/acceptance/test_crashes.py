"""Whoever dies, wherever: the chord ends, with the right results, and its body runs once."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from celery import chord
from celery.exceptions import ChordError

from chordguard import tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from chordguard.ledger.access import ledger_of
from tests import faults, tasks
from tests.app_factory import make_app
from tests.harness import Stack, running_worker, state_and_value, wait_until

#: SQLite goes the way of PostgreSQL here.
BACKENDS = ["redis", pytest.param("sqlite", marks=pytest.mark.nightly), "postgresql"]

pytestmark = pytest.mark.alone

SETTINGS = {
    "chord_watchdog_interval": 0.3,
    "chord_unlock_first_delay": 1,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
}

MEMBERS = 4


@pytest.fixture
def stack(servers, require, request):
    kind = request.getfixturevalue("backend_kind")
    require("redis", *({kind} & {"postgresql", "mysql"}))
    stack = Stack(servers, kind, "redis")
    yield stack
    stack.close()


@pytest.fixture
def start_worker(stack):
    """Run workers until the test is over, so that its report shows what they logged."""
    with ExitStack() as workers:
        yield lambda config, **options: workers.enter_context(running_worker(config, **options))


def config_of(stack, **settings):
    options = {**stack.config()["settings"].get("broker_transport_options", {})}
    # Soon enough for a test, late enough for its tasks.
    options["visibility_timeout"] = 4
    return stack.config({**SETTINGS, "broker_transport_options": options, **settings})


def is_forgotten(app, group_id):
    return ledger_of(app.backend).read(group_id) is None


def wait_for(results, seconds=90):
    wait_until(lambda: all(r.state in ("SUCCESS", "FAILURE") for r in results), seconds, "the end")


@pytest.mark.parametrize("backend_kind", BACKENDS)
@pytest.mark.parametrize(("step", "when"), faults.POINTS, ids=map("-".join, faults.POINTS))
def test_chord_ends_although_its_ender_died(
    stack, start_worker, backend_kind, step, when, record, tmp_path
):
    config = config_of(stack)
    app = make_app(config, patched=True)
    t = tasks.named(app)
    kind = "redis" if backend_kind == "redis" else "database"
    fatal = {
        "backend": kind,
        "points": [(step, when)],
        "share": 1.0,
        "most": 1,
        "folder": str(tmp_path),
    }
    start_worker(config, claim_seconds=2, faults=fatal, concurrency=2)
    body = t.collect.s(record=record.path)
    result = chord([t.echo.s(i) for i in range(MEMBERS)], body).apply_async()
    wait_for([result])
    assert list(range(MEMBERS)) == result.result
    wait_until(lambda: is_forgotten(app, result.parent.id), 20, "an empty ledger")

    assert (tmp_path / "died-0").exists()
    # Only a publish of which nobody knows is done again, by the same id: whoever takes over may
    # come before the body has its result.
    unknown = [("publish", "after"), ("close", "before")]
    assert record.count("body") in ((1, 2) if (step, when) in unknown else (1,))


@pytest.mark.parametrize("backend_kind", BACKENDS)
class TestLostMembers:
    def start(self, stack, start_worker, body_of=lambda body: body):
        config = config_of(stack, task_acks_late=False, chord_timeout=3)
        app = make_app(config, patched=True)
        t = tasks.named(app)
        worker = start_worker(config, concurrency=1)
        canvas = chord([t.echo.s(1), t.slow.s(2, 30)], body_of(t.collect.s()))
        result = canvas.apply_async()
        started = result.parent.results[1].id
        wait_until(lambda: f"[{started}] received" in worker.log_text(), what="the slow one")
        wait_until(lambda: result.parent.results[0].state == "SUCCESS", what="the quick one")
        worker.kill()
        start_worker(config, concurrency=1)
        wait_for([result])
        wait_until(lambda: is_forgotten(app, result.parent.id), what="an empty ledger")
        return result, started

    def test_strict_chord_fails_and_names_them(self, stack, start_worker, backend_kind):
        result, lost = self.start(stack, start_worker)

        state, error = state_and_value(result)
        assert "FAILURE" == state
        assert isinstance(error, ChordError)
        assert lost in str(error)
        assert "chord_timeout = 3" in str(error)

    def test_tolerant_chord_is_told_in_their_places(self, stack, start_worker, backend_kind):
        result, _ = self.start(stack, start_worker, tolerant)

        one, lost = result.result
        assert 1 == one
        assert lost.startswith("ChordMemberLost")


@pytest.mark.parametrize("backend_kind", BACKENDS)
class TestInterruptions:
    """An exception from outside comes while parts are counted and chords are ended."""

    CHORDS = 20
    #: Seconds that they take at most, even under load: less than a claim lasts.
    SOON = 40

    def run(self, stack, start_worker, backend_kind, how, points, tmp_path, record):
        config = config_of(stack, chord_watchdog_interval=1, task_acks_late=False)
        app = make_app(config, patched=True)
        t = tasks.named(app)
        kind = "redis" if backend_kind == "redis" else "database"
        faulty = {"backend": kind, "points": points, "how": how, "share": 0.3}
        # Of each but a soft limit the process dies.
        faulty.update(most=1000 if how == "soft limit" else 1, folder=str(tmp_path))
        start_worker(config, faults=faulty)
        results = [
            chord([t.echo.s(1), t.echo.s(i)], t.collect.s(record=record.path)).apply_async()
            for i in range(self.CHORDS)
        ]
        if how == "MemoryError":
            # Celery ends a worker of which a child has run out of memory.
            wait_until((tmp_path / "died-0").exists, what="a death")
            start_worker(config)
        wait_for(results, self.SOON)
        wait_until(lambda: all(is_forgotten(app, r.parent.id) for r in results), what="no claims")
        assert [*tmp_path.glob("died-*")]
        return results

    def test_soft_time_limit(self, stack, start_worker, backend_kind, tmp_path, record):
        # That of any task's result is no business of a chord's.
        points = [point for point in faults.POINTS if point[0] != "store"]
        results = self.run(
            stack, start_worker, backend_kind, "soft limit", points, tmp_path, record
        )

        assert [[1, i] for i in range(self.CHORDS)] == [result.result for result in results]
        assert self.CHORDS == record.count("body")

    @pytest.mark.parametrize(
        "how",
        [
            "MemoryError",
            pytest.param("SystemExit", marks=pytest.mark.nightly),
            pytest.param("KeyboardInterrupt", marks=pytest.mark.nightly),
        ],
    )
    def test_other_exception(self, stack, start_worker, backend_kind, how, tmp_path, record):
        points = [("count", "after"), ("collect", "before"), ("publish", "before")]
        results = self.run(stack, start_worker, backend_kind, how, points, tmp_path, record)

        # Before 5.7 Celery says of a task that has succeeded that it was lost with its process.
        ended = [result.result for result in results]
        lost = sum("WorkerLostError" in str(value) for value in ended)
        assert lost <= (celery_version() < celery_5_7)
        right = [[1, i] == value for i, value in enumerate(ended)]
        assert self.CHORDS - lost == sum(right)
        assert self.CHORDS - lost == record.count("body")


@pytest.mark.parametrize("backend_kind", BACKENDS)
class TestClaimsOfTheDead:
    """They last for a minute, and are not waited for where it is known who has died."""

    #: Seconds that a chord takes at most, even under load: less than a claim lasts.
    SOON = 40

    @pytest.fixture
    def run(self, stack, start_worker, backend_kind, tmp_path):
        """Return a function that runs a chord whose end goes wrong once.

        It returns the result, the worker, and a function that waits for the chord's end.
        """
        config = config_of(stack, chord_watchdog_interval=1, task_time_limit=3)
        app = make_app(config, patched=True)
        t = tasks.named(app)
        kind = "redis" if backend_kind == "redis" else "database"
        faulty = {"backend": kind, "share": 1.0, "most": 1, "folder": str(tmp_path)}

        def run(points, how="kill", **options):
            faults_ = {**faulty, "points": points, "how": how}
            worker = start_worker(config, faults=faults_, concurrency=2, **options)
            result = chord([t.echo.s(i) for i in range(MEMBERS)], t.collect.s()).apply_async()
            died = tmp_path / "died-0"
            wait_until(died.exists, 20, "a death")
            died_at = time.time()

            def wait_for_end(since=died_at):
                wait_for([result], self.SOON)
                wait_until(lambda: is_forgotten(app, result.parent.id), what="an empty ledger")
                assert time.time() - since < self.SOON

            return result, worker, wait_for_end

        run.config = config  # type: ignore[attr-defined]
        return run

    @pytest.mark.parametrize("step", ["collect", "publish"])
    def test_child_that_was_killed(self, run, step):
        result, _, wait_for_end = run([(step, "before")])
        wait_for_end()
        assert list(range(MEMBERS)) == result.result

    def test_child_that_the_time_limit_killed(self, run):
        _, _, wait_for_end = run([("collect", "before")], "hang")
        wait_for_end()

    def test_child_that_was_replaced_after_its_last_task(self, run):
        result, _, wait_for_end = run([], "omit", max_tasks_per_child=1)
        wait_for_end()
        assert list(range(MEMBERS)) == result.result

    def test_worker_that_was_killed(self, run, start_worker):
        result, worker, wait_for_end = run([], "omit")
        worker.kill()
        start_worker(run.config)
        wait_for_end(since=time.time())
        assert list(range(MEMBERS)) == result.result
