from __future__ import annotations

import pytest
from celery import chain, chord, group

EXPECTED = [[2, 3], 9]


def canvas(t):
    ends_in_group = chain(t.echo.s(1), group(t.add.s(1), t.add.s(2)))
    return chord([ends_in_group, t.echo.s(9)], t.collect.s())


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_body_runs_early_or_never(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks), quiet=0.7)

    assert EXPECTED != outcome.value, outcome


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_body_runs_with_the_results_of_the_group(with_fix):
    assert EXPECTED == with_fix.run(canvas(with_fix.tasks))


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_several_members_may_end_in_groups(with_fix):
    t = with_fix.tasks
    header = [chain(t.echo.s(i), group(t.add.s(1), t.add.s(2))) for i in (10, 20, 30)]

    assert [[11, 12], [21, 22], [31, 32]] == with_fix.run(chord(header, t.collect.s()))
