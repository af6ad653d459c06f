from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard import strict
from chordguard.engine.versions import celery_5_4, celery_version
from chordguard.lifecycle.incrementing import claim_id
from tests.harness import wait_until

#: Each chord has to end by its last part; the safety net comes too late to help.
SETTINGS = {"chord_propagate_errors": False, "chord_unlock_first_delay": 300}

pytestmark = pytest.mark.cluster(settings=SETTINGS)

on_memcached = pytest.mark.parametrize("backend_kind", ["memcached"])
on_all = pytest.mark.parametrize(
    "backend_kind",
    [
        "memcached",
        pytest.param(
            "dynamodb",
            marks=[
                pytest.mark.nightly,
                pytest.mark.skipif(celery_version() < celery_5_4, reason="it is polled there"),
            ],
        ),
    ],
)


def canvas(t, record):
    ends_in_group = chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s()))
    return chord([t.echo.s(1), t.fail.s(), ends_in_group], t.collect.s(record=record.path))


def waiting_chord(cluster, gate, body):
    """Start a chord whose first member was counted, and whose second one waits for the gate."""
    t = cluster.tasks
    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], body).apply_async()
    counted = f"Task tests.echo[{result.parent[0].id}] succeeded"
    wait_until(lambda: counted in cluster.worker.log_text(), what="the first part")
    return result


def deliver_again(cluster, result, body, count=1):
    """Have the first member run once more."""
    options = {"group_id": result.parent.id, "group_index": 0}
    options["chord"] = body.clone(task_id=result.id, chord_size=2)
    for _ in range(count):
        cluster.tasks.echo.apply_async((1,), task_id=result.parent[0].id, **options)
    line = f"Task tests.echo[{result.parent[0].id}] succeeded"
    wait_until(lambda: cluster.worker.log_text().count(line) > count, what="the second run")


@on_memcached
def test_one_failed_member_keeps_the_body_from_running(without_fix, record):
    outcome = without_fix.outcome(canvas(without_fix.tasks, record))

    assert "FAILURE" == outcome.state, outcome
    assert 0 == record.count("body")


@on_all
def test_failed_member_becomes_a_result(with_fix, record):
    expected = [1, "ValueError: boom", [2, "ValueError: boom"]]

    assert expected == with_fix.run(canvas(with_fix.tasks, record))
    assert 1 == record.count("body")


@on_all
def test_strict_chord_fails_and_names_its_members(with_fix, record):
    t = with_fix.tasks
    body = t.collect.s().on_error(t.errback_new.s(record=record.path))

    outcome = with_fix.outcome(strict(chord([t.fail.s("a"), t.echo.s(1), t.fail.s("b")], body)))

    assert "FAILURE" == outcome.state, outcome
    assert all(outcome.result.parent[index].id in str(outcome.value) for index in (0, 2))
    wait_until(lambda: record.count("errback_new"), what="errback")
    assert 1 == record.count("errback_new")


class TestMemberThatIsDeliveredAgain:
    @on_memcached
    @pytest.mark.cluster(settings={**SETTINGS, "result_chord_join_timeout": 0.5})
    def test_fails_the_chord_while_another_runs(self, without_fix, gate):
        t = without_fix.tasks
        result = waiting_chord(without_fix, gate, t.collect.s())

        deliver_again(without_fix, result, t.collect.s())

        assert "FAILURE" == without_fix.outcome(result).state
        gate.open()

    @on_all
    def test_counts_once(self, with_fix, gate, record):
        body = with_fix.tasks.collect.s(record=record.path)
        result = waiting_chord(with_fix, gate, body)

        deliver_again(with_fix, result, body)
        gate.open()

        assert [1, 2] == with_fix.run(result)
        assert 1 == record.count("body")

    @on_all
    def test_leaves_a_body_alone_that_is_running(self, with_fix, gate, record):
        t = with_fix.tasks
        body = t.wait_for_file.s(gate.path, 2).set(immutable=True)
        body.on_error(t.errback_new.s(record=record.path))
        result = chord([t.echo.s(1), t.echo.s(2)], body).apply_async()
        received = f"[{result.id}] received"
        wait_until(lambda: received in with_fix.worker.log_text(), what="the body")

        deliver_again(with_fix, result, body)
        gate.open()

        assert 2 == with_fix.run(result)
        assert 0 == record.count("errback_new")


@on_all
def test_chord_whose_counter_is_lost_ends(with_fix, gate):
    result = waiting_chord(with_fix, gate, with_fix.tasks.collect.s())
    backend = with_fix.app.backend

    backend.delete(backend.get_key_for_chord(result.parent.id))
    gate.open()

    assert [1, 2] == with_fix.run(result)


@on_memcached
def test_chord_without_a_counter_for_claims_ends(with_fix, gate, record):
    """As one of a producer without the patches."""
    result = waiting_chord(with_fix, gate, with_fix.tasks.collect.s(record=record.path))
    backend = with_fix.app.backend

    backend.delete(backend.get_key_for_chord(claim_id(result.parent.id)))
    gate.open()

    assert [1, 2] == with_fix.run(result)
    assert 1 == record.count("body")


@on_all
def test_chord_leaves_nothing_behind(with_fix):
    t = with_fix.tasks
    result = chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s()).apply_async()
    assert [1, 2] == with_fix.run(result)
    backend, group_id = with_fix.app.backend, result.parent.id

    def left():
        keys = [backend.get_key_for_group(group_id), backend.get_key_for_chord(group_id)]
        keys.append(backend.get_key_for_task(result.parent[0].id))
        return [key for key in keys if backend.get(key)]

    wait_until(lambda: not left(), what="nothing")


@on_memcached
def test_error_is_logged_as_by_celery(with_fix):
    t = with_fix.tasks
    outcome = with_fix.outcome(strict(chord([t.fail.s(), t.echo.s(1)], t.collect.s())))

    group_id = outcome.result.parent.id
    wait_until(
        lambda: f"Chord {group_id!r} raised: " in with_fix.worker.log_text(), what="the line"
    )
