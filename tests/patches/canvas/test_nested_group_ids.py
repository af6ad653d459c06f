from __future__ import annotations

import pytest
from celery import chain, chord, group

EXPECTED = [[11, 12], [21, 22], 9]


def ends_in_group(t, x):
    return chain(t.echo.s(x), group(t.add.s(1), t.add.s(2)))


def canvas(t):
    return chord([ends_in_group(t, 10), ends_in_group(t, 20), t.echo.s(9)], t.collect.s())


# The ledger knows the members, and mends that, too.
@pytest.mark.cluster(settings={"chord_ledger": False})
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_body_runs_early_or_never(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks), quiet=0.7)

    assert EXPECTED != outcome.value, outcome


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_body_runs_with_the_results_of_the_groups(with_fix):
    assert EXPECTED == with_fix.run(canvas(with_fix.tasks))
