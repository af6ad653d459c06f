from __future__ import annotations

import pytest
from celery import chord

from chordguard import tolerant
from tests.harness import wait_until

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def canvas(t):
    header = [t.echo.s(1), t.fail_with.s("unpicklable"), t.slow.s(3, 0.7)]
    return tolerant(chord(header, t.collect.s()))


def test_pool_cannot_send_the_failure_and_stores_its_own_error(without_fix):
    result = without_fix.tasks.fail_with.delay("unpicklable")

    wait_until(
        lambda: "MaybeEncodingError" in repr(without_fix.app.AsyncResult(result.id).result),
        what="failure of the pool",
    )


# The ledger counts a member once, whatever it returns.
@pytest.mark.cluster(settings={"chord_ledger": False})
@pytest.mark.parametrize("without_fix", ["switched off"], indirect=True)
def test_member_counts_twice_or_has_lost_its_error(without_fix):
    outcome = without_fix.outcome(canvas(without_fix.tasks))

    assert [1, "UnpicklableError: boom", 3] != outcome.value, outcome


def test_member_counts_once_and_keeps_its_error(with_fix):
    assert [1, "UnpicklableError: boom", 3] == with_fix.run(canvas(with_fix.tasks))
