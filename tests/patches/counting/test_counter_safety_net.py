from __future__ import annotations

import contextlib

import pytest
from celery import chord, states

from chordguard import strict, tolerant
from chordguard.lifecycle import incrementing
from chordguard.lifecycle.polling import BODY
from tests.app_factory import make_app
from tests.harness import UNLOCK, wait_until
from tests.patches.counting.test_incremented_parts import on_all, on_memcached, waiting_chord
from tests.tasks import named

SETTINGS = {"chord_unlock_first_delay": 0.5, "chord_unlock_retry_delay": 0.3}

pytestmark = pytest.mark.cluster(settings=SETTINGS)


def with_lost_member(cluster, choose):
    t = cluster.tasks
    nowhere = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
    return choose(chord([t.echo.s(1), nowhere], t.collect_types.s()), timeout=1)


@on_memcached
def test_chord_with_a_lost_member_never_ends(without_fix):
    assert without_fix.outcome(with_lost_member(without_fix, tolerant), quiet=3).hung


class TestChord:
    @on_all
    def test_with_a_lost_member_is_settled(self, with_fix):
        assert ["int", "str"] == with_fix.run(with_lost_member(with_fix, tolerant))

    @pytest.mark.nightly
    @on_memcached
    def test_that_is_strict_fails_and_names_it(self, with_fix):
        outcome = with_fix.outcome(with_lost_member(with_fix, strict))

        assert "FAILURE" == outcome.state, outcome
        assert "without progress (chord_timeout = 1)" in str(outcome.value)
        assert outcome.result.parent[1].id in str(outcome.value)

    @on_all
    def test_whose_part_was_never_returned_ends(self, with_fix, gate, record):
        body = with_fix.tasks.collect.s(record=record.path)
        result = waiting_chord(with_fix, gate, body)

        # As if its worker had died before it counted.
        with_fix.app.backend.store_result(result.parent[1].id, 3, states.SUCCESS)

        assert [1, 3] == with_fix.run(result)
        gate.open()
        wait_until(with_fix.is_idle, what="idle worker")
        assert 1 == record.count("body")

    @pytest.mark.nightly
    @on_memcached
    def test_that_has_ended_is_left_alone(self, with_fix, record):
        t = with_fix.tasks
        result = chord([t.echo.s(1)], t.collect.s(record=record.path)).apply_async()
        assert [1] == with_fix.run(result)

        wait_until(lambda: f"[{poller(result)}] succ" in with_fix.worker.log_text(), what="a look")
        assert 1 == record.count("body")

    @on_memcached
    def test_whose_header_is_saved_when_it_has_ended_is_left_alone(self, with_fix, record):
        t = with_fix.tasks
        result = chord([t.echo.s(1)], t.collect.s(record=record.path)).apply_async()
        assert [1] == with_fix.run(result)
        result.parent.save()

        wait_until(lambda: f"[{poller(result)}] succ" in with_fix.worker.log_text(), what="a look")
        assert 1 == record.count("body")
        assert result.parent == with_fix.app.GroupResult.restore(result.parent.id)

    @on_memcached
    @pytest.mark.cluster(settings={"chord_unlock_first_delay": 600})
    def test_whose_ender_died_is_taken_over(self, with_fix, gate, record, monkeypatch):
        monkeypatch.setattr(incrementing, "CLAIM_SECONDS", 0.0)
        body = with_fix.tasks.collect.s(record=record.path)
        result = waiting_chord(with_fix, gate, body)
        backend = with_fix.app.backend
        assert 1 == backend.incr(backend.get_key_for_chord(incrementing.claim_id(result.parent.id)))
        gate.open()
        wait_until(lambda: result.parent.ready(), what="ready members")
        wait_until(with_fix.is_idle, what="idle worker")
        assert 0 == record.count("body")

        header = [member.as_tuple() for member in result.parent]
        frozen = dict(body.clone(task_id=result.id))
        poll = with_fix.app.tasks[UNLOCK].apply(
            (result.parent.id, frozen), {"result": header, BODY: frozen}
        )

        assert poll.successful(), poll.traceback
        assert [1, 2] == with_fix.run(result)
        assert 1 == record.count("body")


def poller(result):
    from chordguard.lifecycle.safety_net import unlock_id

    return unlock_id(result.parent.id)


@pytest.mark.nightly
@on_memcached
def test_worker_without_the_patches_runs_no_body_twice(clusters, backend_kind, record):
    cluster = clusters(backend_kind, patched=False)
    producer = make_app(cluster.config, patched=True)
    producer.conf.chord_unlock_first_delay = 0.3
    with contextlib.closing(producer):
        t = named(producer)
        result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s(record=record.path))()
        line = f"Task celery.accumulate[{poller(result)}] succeeded"
        wait_until(lambda: line in cluster.worker.log_text(), what="the poller's own body")

        assert [1, 2] == cluster.run(result)
        assert 1 == record.count("body")
    cluster.app.set_current()
