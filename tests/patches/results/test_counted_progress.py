from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.harness import wait_until

#: Members of the header that do well, and that wait.
GOOD, WAITING = 5, 1

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])


def reads_of(cluster, monkeypatch):
    """Return a list to which each reading of one result adds its id."""
    reads = []
    backend = cluster.app.backend
    read = backend._get_task_meta_for

    def counting(task_id):
        reads.append(task_id)
        return read(task_id)

    monkeypatch.setattr(backend, "_get_task_meta_for", counting)
    return reads


def start(t, gate):
    header = [*(t.echo.s(i) for i in range(GOOD)), t.fail.s()]
    header += [t.wait_for_file.s(gate.path) for _ in range(WAITING)]
    return chord(header, t.collect.s()).apply_async()


def count_live_members(cluster, gate, monkeypatch):
    """Return what is counted while the chord lives, and how many results were read for it."""
    result = start(cluster.tasks, gate)
    header = result.parent
    wait_until(lambda: header.completed_count() == GOOD, what="the members")
    for member in header.results:
        member._cache = None
    reads = reads_of(cluster, monkeypatch)
    found = header.completed_count(), len(reads)
    gate.open()
    cluster.outcome(result)
    return found


def test_every_member_is_read(without_fix, gate, monkeypatch):
    assert (GOOD, GOOD + 1 + WAITING) == count_live_members(without_fix, gate, monkeypatch)


def test_no_member_is_read(with_fix, gate, monkeypatch):
    assert (GOOD, 0) == count_live_members(with_fix, gate, monkeypatch)


def test_members_of_a_chord_that_has_ended_are_read(with_fix):
    t = with_fix.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
    with_fix.run(result)

    wait_until(lambda: result.parent.completed_count() == 2, what="both")
    for member in result.parent.results:
        member.forget()
    assert 0 == result.parent.completed_count()


def test_other_groups_are_counted_as_by_celery(with_fix):
    t = with_fix.tasks
    result = group(t.echo.s(1), t.fail.s(), t.echo.s(3)).apply_async()
    wait_until(result.ready, what="the group")

    assert 2 == result.completed_count()


def test_group_among_the_members_is_counted_as_by_celery(with_fix, gate):
    t = with_fix.tasks
    nested = chain(t.echo.s(1), group(t.echo.s(), t.echo.s()))
    result = chord([nested, t.wait_for_file.s(gate.path)], t.collect.s()).apply_async()
    wait_until(lambda: result.parent.results[0].successful(), what="the group")

    assert 1 == result.parent.completed_count()
    gate.open()
    with_fix.run(result)


def test_ledger_that_cannot_be_read_is_passed_over(with_fix, gate, monkeypatch):
    result = start(with_fix.tasks, gate)
    wait_until(lambda: result.parent.completed_count() == GOOD, what="the members")

    def fail(*_):
        raise OSError("away")

    for path in ("redis_tallies.RedisTallies", "rows.LedgerOfRows"):
        monkeypatch.setattr(f"chordguard.ledger.{path}.progress", fail)
    assert GOOD == result.parent.completed_count()
    gate.open()
    with_fix.outcome(result)
