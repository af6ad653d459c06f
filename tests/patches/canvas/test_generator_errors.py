from __future__ import annotations

import pytest
from celery import chord

from chordguard import counting

ACTS_IN_PRODUCER = True

on_both = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def canvas(cluster, count):
    """Return a chord whose header raises after so many tasks; it has to be the current app's."""
    cluster.app.set_current()
    t = cluster.tasks

    def members():
        yield from (t.echo.s(i) for i in range(count))
        raise LookupError("no more")

    return chord(members(), t.collect.s())


@on_both
def test_error_gets_lost(without_fix):
    assert [0] == without_fix.run(canvas(without_fix, 1))


@on_both
@pytest.mark.parametrize("count", range(5))
def test_error_is_raised(with_fix, count):
    with pytest.raises(LookupError, match="no more"):
        canvas(with_fix, count).apply_async()


@on_both
def test_nothing_is_left(with_fix):
    ledger = counting.ledger_of(with_fix.app.backend)
    before = ledger.group_ids()

    with pytest.raises(LookupError):
        canvas(with_fix, 1).apply_async()

    assert before == ledger.group_ids()


@on_both
def test_tasks_of_other_iterables_are_sent(with_fix):
    t = with_fix.tasks
    members = {"b": t.echo.s(2), "a": t.echo.s(1)}.values()

    assert [2, 1] == with_fix.run(chord(members, t.collect.s()))
