"""What the other tests rely on: workers that run chords of Celery alone, and see one hang."""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.harness import BROKERS, OUTCOME_DEADLINE, wait_until

pytestmark = pytest.mark.cluster(patched=False)


@pytest.mark.parametrize("broker_kind", BROKERS)
def test_chord_runs_on_every_backend_and_broker(cluster, record):
    t = cluster.tasks

    value = cluster.run(chord([t.add.s(i, i) for i in range(5)], t.collect.s(record=record.path)))

    assert [0, 2, 4, 6, 8] == value
    assert 1 == record.count("body")


def test_failed_member_fails_the_chord_and_calls_the_errback(cluster, record):
    t = cluster.tasks
    body = t.collect.s(record=record.path).on_error(t.errback_new.s(record=record.path))

    outcome = cluster.outcome(chord([t.echo.s(1), t.fail.s()], body))

    assert "FAILURE" == outcome.state
    assert "boom" in str(outcome.value)
    wait_until(lambda: record.count("errback_new"), what="errback")
    assert 0 == record.count("body")


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_chord_that_hangs_is_judged_with_evidence(cluster):
    t = cluster.tasks

    outcome = cluster.outcome(chord([t.echo.s(1), t.ignore.s()], t.collect.s()), quiet=1.5)

    assert outcome.hung
    assert outcome.seconds < OUTCOME_DEADLINE
    assert "queue: 0" in outcome.evidence


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_straggler_waits_for_its_gate(cluster, gate):
    t = cluster.tasks

    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s()).apply_async()
    wait_until(lambda: "SUCCESS" == result.parent[0].state, what="first member")
    assert not result.ready()
    gate.open()

    assert [1, 2] == cluster.run(result)


@pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])
def test_killed_pool_process_fails_the_chord(cluster):
    t = cluster.tasks

    outcome = cluster.outcome(chord([t.echo.s(1), t.kill_self.s()], t.collect.s()))

    assert "FAILURE" == outcome.state
    assert "WorkerLost" in str(outcome.value)


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_tasks_retry_replace_and_form_groups(cluster):
    t = cluster.tasks

    assert [1, 2] == cluster.run(chord([t.retry_then.s(1), t.replace_with.s(2)], t.collect.s()))
    assert [3, 4] == cluster.run(group([t.add.s(1, 2), t.add.s(2, 2)]))
    assert 6 == cluster.run(chain(group([t.echo.s(1), t.echo.s(5)]), t.tsum.s()))


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_run_chords(clusters, backend_kind, pool):
    cluster = clusters(backend_kind, patched=False, pool=pool)
    t = cluster.tasks

    assert 3 == cluster.run(chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()))


def test_worker_of_ones_own_can_be_killed(clusters):
    with clusters.alone("redis", patched=False) as cluster:
        cluster.worker.kill()
        assert not cluster.worker.is_alive


def test_equal_options_give_the_same_cluster(clusters):
    first = clusters("redis", patched=False)

    assert first is clusters("redis", patched=False)
    assert first is not clusters("redis", patched=False, settings={"task_acks_late": True})
