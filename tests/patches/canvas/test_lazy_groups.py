from __future__ import annotations

import pytest
from celery import chain, chord, group

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def canvas(t):
    # Long enough to show positions that two tasks have.
    inner = group(t.echo.s(i) for i in range(1, 8))
    return chord((member for member in [t.echo.s(0), inner, t.echo.s(8)]), t.collect.s())


def test_results_of_a_group_in_a_generator_come_nested_or_in_the_wrong_order(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks), quiet=0.7)

    assert list(range(9)) != outcome.value, outcome


def test_results_of_a_group_in_a_generator_come_in_header_order(with_fix):
    assert list(range(9)) == with_fix.run(canvas(with_fix.tasks))


def test_groups_of_generators_nested_in_one_another_are_taken_apart(with_fix):
    t = with_fix.tasks
    inner = group(t.echo.s(i) for i in (2, 3))
    header = (member for member in [t.echo.s(1), group([inner, t.echo.s(4)])])

    assert [1, 2, 3, 4] == with_fix.run(chord(header, t.collect.s()))


def test_step_that_is_a_group_of_a_generator_is_taken_apart(with_fix):
    t = with_fix.tasks
    step = group(member for member in [t.add.s(1), group([t.add.s(2), t.add.s(3)])])

    assert [11, 12, 13] == with_fix.run(chain(t.echo.s(10), step))
