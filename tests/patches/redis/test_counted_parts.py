from __future__ import annotations

import time
from contextlib import suppress

import pytest
from celery import chain, chord, group, states
from celery.app.task import Context
from celery.exceptions import ChordError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from chordguard import strict, tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from chordguard.ledger import claims
from chordguard.ledger.access import ledger_of
from tests.chords.stuck import waiting_chord
from tests.chords.troubled import key_of, lose_parts, run_again
from tests.harness import running_worker, wait_until

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis"]),
    pytest.mark.cluster(settings={"chord_watchdog_interval": 0.3}),
]

#: Seconds in which a body that is not held up has started.
SOON = 1.5


def keys_of(cluster, result):
    """Return the ends of the keys that a chord has, but for what is kept of how it ended."""
    client = cluster.app.backend.client
    start = cluster.app.backend.get_key_for_group(result.parent.id, "")
    found = {key.removeprefix(start).decode() for key in client.scan_iter(start + b"*", count=1000)}
    found.discard(".chordguard-end")
    due = ledger_of(cluster.app.backend).key("chordguard", ".due")
    return found | ({"due"} if client.zscore(due, result.parent.id) is not None else set())


def stays_pending(result):
    """Tell whether the chord does not end although all its members are done."""
    wait_until(lambda: all(r.state in states.READY_STATES for r in result.parent), what="members")
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        if result.state in states.READY_STATES:
            return False
        time.sleep(0.05)
    return True


class TestPartsThatComeTwice:
    @pytest.mark.skipif(celery_version() >= celery_5_7, reason="mended in Celery 5.7")
    def test_are_counted_twice(self, without_fix, gate, record):
        result = waiting_chord(without_fix, gate, without_fix.tasks.collect.s(record=record.path))

        without_fix.app.backend.delete(
            without_fix.app.backend.get_key_for_task(result.parent.results[0].id)
        )
        run_again(without_fix, result, 99, record)

        wait_until(lambda: record.count("body") == 1, what="the body, early")
        gate.open()

    def test_count_once(self, with_fix, gate, record):
        result = waiting_chord(with_fix, gate, with_fix.tasks.collect.s(record=record.path))

        with_fix.app.backend.delete(
            with_fix.app.backend.get_key_for_task(result.parent.results[0].id)
        )
        run_again(with_fix, result, 99, record)
        assert 0 == record.count("body")
        gate.open()

        assert [1, 2] == with_fix.run(result)
        assert 1 == record.count("body")


class TestLostConnections:
    def part(self, cluster, result, monkeypatch, failures):
        """Return the first member's part from here, over a connection that fails at first."""
        backend = cluster.app.backend
        monkeypatch.setattr(backend, "retry_policy", {**backend.retry_policy, "interval_start": 0})
        backend.result_consumer.stop()
        left = [failures]
        send = type(backend.client.connection_pool).get_connection

        def get_connection(pool, *args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise RedisConnectionError("cut")
            return send(pool, *args, **kwargs)

        monkeypatch.setattr(type(backend.client.connection_pool), "get_connection", get_connection)
        first = result.parent.results[0]
        request = Context(
            id=first.id,
            task=cluster.tasks.echo.name,
            group=result.parent.id,
            group_index=0,
            chord=dict(cluster.tasks.collect.s().set(task_id=result.id)),
        )
        try:
            backend.on_chord_part_return(request, states.SUCCESS, 1)
        finally:
            monkeypatch.undo()

    def start(self, cluster, gate):
        """Start a chord whose first member never returned its part."""
        result = waiting_chord(cluster, gate)
        lose_parts(cluster, result)
        return result

    def test_fail_the_task(self, without_fix, gate, monkeypatch):
        result = self.start(without_fix, gate)

        with pytest.raises(RedisConnectionError):
            self.part(without_fix, result, monkeypatch, failures=1)
        gate.open()

    def test_are_tried_again(self, with_fix, gate, monkeypatch):
        result = self.start(with_fix, gate)

        self.part(with_fix, result, monkeypatch, failures=2)
        gate.open()

        assert [1, 2] == with_fix.run(result)

    def test_part_that_was_never_returned_is_found(self, with_fix, gate):
        result = waiting_chord(with_fix, gate)
        lose_parts(with_fix, result)
        gate.open()

        assert [1, 2] == with_fix.run(result)


class TestSize:
    def test_chord_whose_size_is_gone_never_ends(self, without_fix, gate):
        result = waiting_chord(without_fix, gate)

        without_fix.app.backend.client.delete(key_of(without_fix, result, ".s"))
        gate.open()

        assert stays_pending(result)

    def test_is_in_the_ledger_too(self, with_fix, gate):
        result = waiting_chord(with_fix, gate)

        with_fix.app.backend.client.delete(key_of(with_fix, result, ".s"))
        gate.open()

        assert [1, 2] == with_fix.run(result)

    def test_keys_outlive_the_timeout_of_the_chord(self, with_fix, gate):
        t = with_fix.tasks
        body = tolerant(t.collect.s(), timeout=50_000)
        header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2)]
        result = chord(header, body).apply_async()
        wait_until(lambda: {".j", ".s"} <= keys_of(with_fix, result), what="a part")
        client = with_fix.app.backend.client

        ends = {".j", ".s", ".d"} & keys_of(with_fix, result)
        lives = [client.ttl(key_of(with_fix, result, end)) for end in ends]

        gate.open()
        with_fix.run(result)
        assert min(lives) > 50_000

    def test_generator_tells_its_members(self, with_fix):
        t = with_fix.tasks
        header = (t.echo.s(i) for i in range(20))
        result = chord(header, t.collect.s()).apply_async()

        assert list(range(20)) == with_fix.run(result)


class TestClaims:
    @pytest.mark.skipif(celery_version() < celery_5_7, reason="Celery claims from 5.7 on")
    def test_chord_whose_ender_died_never_ends(self, without_fix, gate):
        result = waiting_chord(without_fix, gate)

        without_fix.app.backend.client.set(key_of(without_fix, result, ".c"), "dead", ex=1)
        gate.open()

        assert stays_pending(result)

    def test_are_taken_over(self, with_fix, gate, record, monkeypatch):
        monkeypatch.setattr(claims, "CLAIM_SECONDS", 2)
        result = waiting_chord(with_fix, gate, with_fix.tasks.collect.s(record=record.path))

        assert ledger_of(with_fix.app.backend).claim(result.parent.id)
        gate.open()

        assert [1, 2] == with_fix.run(result)
        assert 1 == record.count("body")

    def test_of_the_other_kind_of_worker_are_respected(self, with_fix, gate, record):
        result = waiting_chord(with_fix, gate, with_fix.tasks.collect.s(record=record.path))

        with_fix.app.backend.client.set(key_of(with_fix, result, ".c"), "other", px=1500)
        gate.open()
        started = time.monotonic()

        assert [1, 2] == with_fix.run(result)
        assert time.monotonic() > started + 1
        assert 1 == record.count("body")


class TestKeys:
    CANVASES = pytest.mark.parametrize("choose", [strict, tolerant])

    def failing(self, t, choose):
        header = [t.echo.s(1), t.fail.s(), chain(t.echo.s(2), group(t.add.s(1), t.add.s(2)))]
        return chord(header, choose(t.collect.s()))

    def test_of_a_failed_chord_stay(self, without_fix):
        t = without_fix.tasks
        result = chord([t.echo.s(1), t.fail.s()], t.collect.s()).apply_async()
        assert without_fix.outcome(result).state == states.FAILURE
        time.sleep(0.3)

        assert ".j" in keys_of(without_fix, result)

    @CANVASES
    def test_go_when_the_chord_has_ended(self, with_fix, choose):
        result = self.failing(with_fix.tasks, choose).apply_async()
        with_fix.outcome(result)

        # What is left says, for a while, that the chord has ended; Celery keeps nested results.
        # The parts of one that failed can be read as long.
        kept = {"", ".c", ".j"} if result.state == "FAILURE" else {"", ".c"}
        wait_until(lambda: keys_of(with_fix, result) <= kept, what="no keys")
        client = with_fix.app.backend.client
        for end in keys_of(with_fix, result) - {""}:
            assert 0 < client.ttl(key_of(with_fix, result, end)) <= 300

    def test_parts_of_a_failed_chord_can_be_read(self, with_fix):
        result = self.failing(with_fix.tasks, strict).apply_async()
        with_fix.outcome(result)
        wait_until(lambda: ".s" not in keys_of(with_fix, result), what="end")

        backend = with_fix.app.backend
        read = backend.client.zrange if backend._chord_zset else backend.client.lrange
        parts = [backend.decode(part) for part in read(key_of(with_fix, result, ".j"), 0, -1)]
        assert 1 in [value for _, _, state, value in parts if state == "SUCCESS"]

    def test_parts_of_a_failed_chord_do_not_count_when_it_starts_again(self, with_fix, gate):
        t = with_fix.tasks
        failing = strict(chord([t.fail.s(), t.echo.s(1)], t.collect.s()))
        result = failing.apply_async()
        with_fix.outcome(result)
        wait_until(lambda: ".s" not in keys_of(with_fix, result), what="end")

        ledger = ledger_of(with_fix.app.backend)
        ledger.open(result.parent.id, ["a", "b"], None, time.time() + 600, 600)
        assert ".j" not in keys_of(with_fix, result)
        ledger.close(result.parent.id)

    def test_all_expire(self, with_fix, gate):
        t = with_fix.tasks
        nested = chain(t.echo.s(2), group(t.add.s(1), t.add.s(2)))
        header = [nested, t.wait_for_file.s(gate.path, 2)]
        result = chord(header, t.collect.s()).apply_async()
        wait_until(lambda: {".j", ".s"} <= keys_of(with_fix, result), what="a part")

        client = with_fix.app.backend.client
        ends = keys_of(with_fix, result) - {"due"}
        lives = {end: client.ttl(key_of(with_fix, result, end)) for end in ends}
        due = ledger_of(with_fix.app.backend).key("chordguard", ".due")
        lives["due"] = client.ttl(due)

        gate.open()
        with_fix.run(result)
        assert all(seconds > 0 for seconds in lives.values()), lives


class TestMixedWorkers:
    def test_count_one_chord_together(self, with_fix, record):
        t, queue = with_fix.tasks, f"{with_fix.stack.name}-unpatched"
        header = [t.echo.s(i).set(queue=queue if i % 2 else None) for i in range(10)]

        with running_worker(with_fix.config, patched=False, concurrency=1, queues=[queue]):
            results = [
                chord(header, t.collect.s(record=record.path)).apply_async() for _ in range(10)
            ]
            assert [list(range(10))] * 10 == [with_fix.run(result) for result in results]

        assert 10 == record.count("body")
        left, ledger = {}, ledger_of(with_fix.app.backend)
        for result in results:
            with suppress(AssertionError):
                wait_until(lambda r=result: keys_of(with_fix, r) <= {".c"}, 20, "no keys")
            if keys_of(with_fix, result) - {".c"}:
                left[result.parent.id] = ledger.read(result.parent.id), keys_of(with_fix, result)
        assert not left, f"now is {time.time()}"

    def test_strict_chord_that_the_other_worker_fails_is_forgotten(self, with_fix, gate):
        t, queue = with_fix.tasks, f"{with_fix.stack.name}-unpatched"
        header = [t.echo.s(1), t.fail.s().set(queue=queue)]
        result = chord(header, t.collect.s()).apply_async()
        wait_until(lambda: result.parent.results[0].state == states.SUCCESS, what="the first")

        with running_worker(with_fix.config, patched=False, concurrency=1, queues=[queue]):
            outcome = with_fix.outcome(result)

        assert isinstance(outcome.value, ChordError)
        wait_until(lambda: "due" not in keys_of(with_fix, result), 20, "an empty ledger")


def test_without_a_ledger_parts_are_counted_as_by_celery(with_fix):
    t = with_fix.tasks
    with_fix.app.conf.chord_ledger = False
    try:
        result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
    finally:
        with_fix.app.conf.chord_ledger = True

    assert [1, 2] == with_fix.run(result)


class TestRefusals:
    """Of a Redis that lets the application run no scripts."""

    @pytest.fixture
    def refusing(self, with_fix, monkeypatch):
        def refuse(*args):
            raise NoPermissionError("NOPERM this user has no permissions to run 'evalsha'")

        monkeypatch.setattr("chordguard.ledger.redis.RedisLedger._run_once", refuse)
        return with_fix

    def test_chord_is_sent_as_by_celery(self, refusing):
        t = refusing.tasks

        assert [1, 2] == refusing.run(chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))

    @pytest.mark.skipif(celery_version() >= celery_5_7, reason="Celery itself runs scripts")
    def test_part_is_counted_as_by_celery(self, refusing, gate):
        result = waiting_chord(refusing, gate)
        lose_parts(refusing, result)
        first = result.parent.results[0]
        task = refusing.tasks.echo.name
        request = Context(id=first.id, task=task, group=result.parent.id, group_index=0, chord={})

        refusing.app.backend.on_chord_part_return(request, states.SUCCESS, 1)

        assert 1 == refusing.app.backend.client.zcard(key_of(refusing, result, ".j"))
        gate.open()


def test_errback_is_a_child_of_what_failed(with_fix, record):
    t = with_fix.tasks
    body = t.collect.s().on_error(t.errback_old.s(record=record.path))

    outcome = with_fix.outcome(chord([t.echo.s(1), t.fail.s()], body))

    assert "FAILURE" == outcome.state
    (errbacks,) = outcome.result.children
    with_fix.run(with_fix.app.AsyncResult(errbacks.results[0].id))
    assert 1 == record.count("errback_old")
