from __future__ import annotations

import pytest
from celery import chord

from chordguard import tolerant

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])

# Celery alone knows no choice: only the switch shows what this fix is for.
without_the_fix = pytest.mark.parametrize("without_fix", ["switched off"], indirect=True)


def tolerant_chord(t):
    return tolerant(chord([t.echo.s(1), t.fail.s()], t.collect.s()))


def tolerant_chord_with_a_strict_one_for_its_body(t):
    body = chord([t.collect.s(), t.fail_after.s()], t.collect.s())
    return tolerant(chord([t.echo.s(1), t.fail.s()], body))


@without_the_fix
def test_choice_is_lost_when_headers_are_given(without_fix):
    canvas = tolerant_chord(without_fix.tasks)

    assert "FAILURE" == without_fix.outcome(canvas, headers={"trace": "1"}).state


def test_choice_survives_headers_given_to_apply_async(with_fix):
    canvas = tolerant_chord(with_fix.tasks)

    assert [1, "ValueError: boom"] == with_fix.run(canvas, headers={"trace": "1"})


@without_the_fix
def test_choice_leaks_into_a_chord_that_is_the_body(without_fix):
    canvas = tolerant_chord_with_a_strict_one_for_its_body(without_fix.tasks)

    assert "SUCCESS" == without_fix.outcome(canvas).state


def test_choice_does_not_leak_into_a_chord_that_is_the_body(with_fix):
    canvas = tolerant_chord_with_a_strict_one_for_its_body(with_fix.tasks)

    outcome = with_fix.outcome(canvas)

    assert "FAILURE" == outcome.state, outcome
