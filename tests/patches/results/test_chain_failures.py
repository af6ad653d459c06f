from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard.engine.versions import celery_5_7, celery_version
from tests.harness import is_ready

polled = pytest.mark.cluster(settings={"chord_ledger": False})

pytestmark = pytest.mark.parametrize(
    "backend_kind", ["redis", "sqlite", pytest.param("sqlite", marks=polled, id="sqlite-polled")]
)


def ends_in_group(t):
    return chain(t.fail.s(), group(t.echo.s(), t.echo.s()))


def group_in_the_middle(t):
    return chain(t.fail.s(), group(t.echo.s(), t.echo.s()), t.collect.s())


def canvas(t, failing_chain, record=None):
    body = t.collect.s().on_error(t.errback_new.s(record=record and record.path))
    return chord([failing_chain(t), t.echo.s(9)], body)


def test_chord_hangs_when_a_chain_fails_before_a_group(without_fix):
    t = without_fix.tasks
    results = [canvas(t, ends_in_group).apply_async()]
    if celery_version() < celery_5_7:
        results.append(canvas(t, group_in_the_middle).apply_async())

    assert without_fix.outcome(results[0], quiet=0.7).hung
    assert not any(is_ready(result) for result in results)


@pytest.mark.parametrize("failing_chain", [ends_in_group, group_in_the_middle])
def test_chord_fails_when_a_chain_fails_before_a_group(with_fix, failing_chain, record):
    outcome = with_fix.outcome(canvas(with_fix.tasks, failing_chain, record))

    assert "FAILURE" == outcome.state, outcome
    assert 1 == record.count("errback_new")
