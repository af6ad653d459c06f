from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.app.task import Context

from chordguard import strict, tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from tests.harness import wait_until

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis"]),
    # With a ledger chords end another way.
    pytest.mark.cluster(settings={"chord_propagate_errors": False, "chord_ledger": False}),
]


def flat(t, body):
    return chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], body)


def nested(t, body):
    return chord([chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s())), t.echo.s(3)], body)


CANVASES = [
    pytest.param(flat, [1, "ValueError: boom", 3], id="flat"),
    pytest.param(nested, [[2, "ValueError: boom"], 3], id="nested"),
]


@pytest.mark.parametrize(("canvas", "expected"), CANVASES)
def test_one_failed_member_keeps_the_body_from_running(without_fix, canvas, expected, record):
    t = without_fix.tasks

    outcome = without_fix.outcome(canvas(t, t.collect.s(record=record.path)), quiet=0.7)

    assert "SUCCESS" != outcome.state
    assert 0 == record.count("body")


@pytest.mark.parametrize(("canvas", "expected"), CANVASES)
def test_failed_member_becomes_a_result(with_fix, canvas, expected, record):
    t = with_fix.tasks

    assert expected == with_fix.run(canvas(t, t.collect.s(record=record.path)))
    assert 1 == record.count("body")


def test_failed_chord_inside_a_tolerant_one_is_a_member_that_failed(with_fix):
    t = with_fix.tasks
    inner = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s()))

    inner_error, value = with_fix.run(chord([inner, t.echo.s(2)], t.collect.s()))

    assert "boom" in inner_error
    assert 2 == value


@pytest.mark.parametrize("choose", [strict, tolerant])
def test_chord_leaves_no_keys_of_its_own_behind(with_fix, choose):
    t = with_fix.tasks
    result = choose(flat(t, t.collect.s())).apply_async()
    with_fix.outcome(result)

    backend = with_fix.app.backend
    if choose is tolerant:
        assert not backend.client.exists(backend.get_key_for_group(result.parent.id, ".j"))
    assert 0 != backend.client.ttl(backend.get_key_for_group(result.parent.id, ".j"))


def names_both(outcome):
    """Tell whether the error of a chord names the two members of its header."""
    assert "FAILURE" == outcome.state, outcome
    return all(member.id in str(outcome.value) for member in outcome.result.parent)


def failing(t, record=None):
    body = t.collect.s().on_error(t.errback_new.s(record=record and record.path))
    return strict(chord([t.fail.s("a"), t.fail.s("b")], body))


def test_error_of_a_strict_chord_names_one_member(without_fix):
    assert not names_both(without_fix.outcome(failing(without_fix.tasks)))


def test_error_of_a_strict_chord_names_all_members_that_failed(with_fix):
    outcome = with_fix.outcome(failing(with_fix.tasks))

    assert names_both(outcome)
    assert str(outcome.value).startswith(f"Dependency {outcome.result.parent[0].id} raised ")


def return_again(cluster, record):
    """Have a part of a failed chord come twice; return how often the errback was called then."""
    canvas = failing(cluster.tasks, record)
    result = canvas.apply_async()
    cluster.outcome(result)
    wait_until(lambda: record.count("errback_new"), what="errback")
    # The member that failed the chord has still to forget it.
    wait_until(cluster.is_idle, what="idle worker")
    part = Context(
        id=result.parent[0].id,
        group=result.parent.id,
        group_index=0,
        chord=dict(canvas.body.clone(task_id=result.id)),
    )
    cluster.app.backend.on_chord_part_return(part, "FAILURE", ValueError("a"))
    wait_until(cluster.is_idle, what="idle worker")
    return record.count("errback_new")


def test_part_that_comes_twice_fails_a_chord_again(without_fix, record):
    if celery_version() >= celery_5_7:
        pytest.skip("this Celery does not have the defect")

    assert 2 == return_again(without_fix, record)


def test_part_that_comes_twice_fails_no_chord_again(with_fix, record):
    assert 1 == return_again(with_fix, record)
