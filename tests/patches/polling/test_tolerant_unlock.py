from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard import strict

pytestmark = pytest.mark.cluster(
    # A chord that is counted ends without the poller, and so without this fix.
    settings={
        "chord_propagate_errors": False,
        "chord_ledger": False,
        # No time to read the results, which is not needed with this fix.
        "result_chord_join_timeout": 1e-6,
    }
)

EXPECTED = [1, "ValueError: boom", [2, "ValueError: boom"]]


def canvas(t, record):
    ends_in_group = chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s()))
    return chord([t.echo.s(1), t.fail.s(), ends_in_group], t.collect.s(record=record.path))


@pytest.mark.parametrize("backend_kind", ["sqlite", "filesystem"])
def test_one_failed_member_keeps_the_body_from_running(without_fix, record):
    outcome = without_fix.outcome(canvas(without_fix.tasks, record))

    assert "FAILURE" == outcome.state, outcome
    assert 0 == record.count("body")


@pytest.mark.parametrize("backend_kind", ["sqlite", "filesystem", "postgresql", "mysql"])
def test_failed_member_becomes_a_result(with_fix, record):
    assert EXPECTED == with_fix.run(canvas(with_fix.tasks, record))
    assert 1 == record.count("body")


@pytest.mark.parametrize("backend_kind", ["sqlite"])
def test_strict_chord_fails(with_fix, record):
    outcome = with_fix.outcome(strict(canvas(with_fix.tasks, record)))

    assert "FAILURE" == outcome.state, outcome
    assert 0 == record.count("body")
