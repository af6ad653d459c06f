from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard._patch import celery_5_7, celery_version

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def ends_in_group(t):
    return chain(t.fail.s(), group(t.echo.s(), t.echo.s()))


def group_in_the_middle(t):
    return chain(t.fail.s(), group(t.echo.s(), t.echo.s()), t.collect.s())


#: A chain, and the first Celery that does not hang when it fails in a header.
CHAINS = [
    pytest.param(ends_in_group, None, id="last step is a group"),
    pytest.param(group_in_the_middle, celery_5_7, id="a group in the middle"),
]


def canvas(t, failing_chain, record=None):
    body = t.collect.s().on_error(t.errback_new.s(record=record and record.path))
    return chord([failing_chain(t), t.echo.s(9)], body)


@pytest.mark.parametrize(("failing_chain", "until"), CHAINS)
def test_chord_hangs_when_a_chain_fails_before_a_group(without_fix, failing_chain, until):
    if until and celery_version() >= until:
        pytest.skip("this Celery does not have the defect")

    assert without_fix.outcome(canvas(without_fix.tasks, failing_chain), quiet=0.7).hung


@pytest.mark.parametrize(("failing_chain", "until"), CHAINS)
def test_chord_fails_when_a_chain_fails_before_a_group(with_fix, failing_chain, until, record):
    outcome = with_fix.outcome(canvas(with_fix.tasks, failing_chain, record))

    assert "FAILURE" == outcome.state, outcome
    assert 1 == record.count("errback_new")
