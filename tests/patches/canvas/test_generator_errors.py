from __future__ import annotations

import pytest
from celery import chord

from chordguard.ledger.access import ledger_of
from tests.chords.troubled import raising_header

on_both = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


@on_both
def test_error_gets_lost(without_fix):
    assert [0] == without_fix.run(raising_header(without_fix, 1))


@on_both
@pytest.mark.parametrize("count", range(5))
def test_error_is_raised(with_fix, count):
    with pytest.raises(LookupError, match="no more"):
        raising_header(with_fix, count).apply_async()


@on_both
def test_nothing_is_left(with_fix):
    ledger = ledger_of(with_fix.app.backend)
    before = ledger.group_ids()

    with pytest.raises(LookupError):
        raising_header(with_fix, 1).apply_async()

    assert before == ledger.group_ids()


@on_both
def test_tasks_of_other_iterables_are_sent(with_fix):
    t = with_fix.tasks
    members = {"b": t.echo.s(2), "a": t.echo.s(1)}.values()

    assert [2, 1] == with_fix.run(chord(members, t.collect.s()))
