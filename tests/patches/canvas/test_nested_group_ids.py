from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard.engine.versions import celery_5_7, celery_version

EXPECTED = [[11, 12], [21, 22], 9]


def ends_in_group(t, x):
    return chain(t.echo.s(x), group(t.add.s(1), t.add.s(2)))


def canvas(t):
    return chord([ends_in_group(t, 10), ends_in_group(t, 20), t.echo.s(9)], t.collect.s())


def chord_in_a_group(t):
    inner = group(chord([t.echo.s()], t.collect.s()), t.echo.s())
    return chord([chain(t.echo.s(1), inner), t.echo.s(2)], t.collect.s())


# The ledger knows the members, and mends that, too.
@pytest.mark.skipif(celery_version() >= celery_5_7, reason="mended in 5.7")
@pytest.mark.cluster(settings={"chord_ledger": False})
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_body_runs_early_or_never(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks), quiet=0.7)

    assert EXPECTED != outcome.value, outcome


@pytest.mark.skipif(
    celery_version() < celery_5_7, reason="up to 5.6 the group has no id of its own"
)
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_body_does_not_run_where_a_chord_is_in_such_a_group(without_fix):
    assert without_fix.outcome(chord_in_a_group(without_fix.tasks), quiet=0.7).hung


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_body_runs_where_a_chord_is_in_such_a_group(with_fix):
    assert [[[1], 1], 2] == with_fix.run(chord_in_a_group(with_fix.tasks))


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_body_runs_where_a_chord_is_in_the_group_that_is_a_body(with_fix):
    t = with_fix.tasks
    body = group(chord([t.collect.s()], t.collect.s()), t.collect.s())

    assert [[[[1]], [1]], 2] == with_fix.run(
        chord([chord([t.echo.s(1)], body), t.echo.s(2)], t.collect.s())
    )


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_body_runs_with_the_results_of_the_groups(with_fix):
    assert EXPECTED == with_fix.run(canvas(with_fix.tasks))
