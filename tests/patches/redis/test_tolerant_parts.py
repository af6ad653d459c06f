from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard import strict, tolerant

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
