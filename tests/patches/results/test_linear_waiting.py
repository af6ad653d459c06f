from __future__ import annotations

import pytest
from celery import chord
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as NotInTime

from chordguard.engine.versions import celery_5_7, celery_version
from chordguard.lifecycle import waiting

#: Members of the header that are not done while the test waits.
SIZE = 30

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def reads_while_waiting(cluster, gate, monkeypatch):
    """Return how many results of members were read one by one, and the chord's result."""
    t = cluster.tasks
    result = chord(
        [t.wait_for_file.s(gate.path, i) for i in range(SIZE)], t.collect.s()
    ).apply_async()
    reads = []
    read = cluster.app.backend._get_task_meta_for

    def counting(task_id):
        reads.append(task_id)
        return read(task_id)

    monkeypatch.setattr(cluster.app.backend, "_get_task_meta_for", counting)
    with pytest.raises(NotInTime):
        result.get(timeout=1.6, interval=0.1)
    gate.open()
    return len([task_id for task_id in reads if task_id != result.id]), result


def test_waiting_reads_every_member_again_and_again(without_fix, gate, monkeypatch):
    reads, result = reads_while_waiting(without_fix, gate, monkeypatch)

    assert reads >= 2 * SIZE
    assert list(range(SIZE)) == without_fix.run(result)


def test_waiting_reads_members_in_bulk(with_fix, gate, monkeypatch):
    reads, result = reads_while_waiting(with_fix, gate, monkeypatch)

    assert 0 == reads
    assert list(range(SIZE)) == result.get(timeout=20)


def test_waiting_raises_the_error_of_a_member_before_the_chord_ends(with_fix, gate):
    t = with_fix.tasks
    result = chord([t.fail.s(), t.wait_for_file.s(gate.path)], t.collect.s()).apply_async()

    with pytest.raises((ValueError, ChordError), match="boom"):
        result.get(timeout=10)
    gate.open()
    assert "FAILURE" == with_fix.outcome(result).state


def test_waiting_leaves_the_result_as_it_was(with_fix):
    t = with_fix.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()).apply_async()

    assert 3 == result.get(timeout=10)
    assert "_parents" not in vars(result)
    assert 3 == result.get(timeout=10)


@pytest.fixture
def few_announced(monkeypatch, backend_kind):
    """Treat a header of more than five members as a large one."""
    if backend_kind != "redis":
        pytest.skip("only Redis announces results")
    monkeypatch.setattr(waiting, "MOST_ANNOUNCED", 5)


@pytest.mark.parametrize("somebody_else_waits", [False, True])
def test_waiting_for_a_large_header_ends_with_the_chord(
    with_fix, few_announced, somebody_else_waits
):
    t = with_fix.tasks
    other = t.slow.delay("other", 0.5) if somebody_else_waits else None
    header = [t.slow.s(i, 0.02) for i in range(SIZE)]
    result = chord(header, t.collect.s()).apply_async()

    assert list(range(SIZE)) == result.get(timeout=20)
    assert other is None or other.get(timeout=10) == "other"


def test_members_of_a_large_header_are_announced_again_after_a_timeout(
    with_fix, few_announced, gate
):
    t = with_fix.tasks
    header = [t.wait_for_file.s(gate.path, i) for i in range(SIZE)]
    result = chord(header, t.collect.s()).apply_async()
    backend = with_fix.app.backend
    consumer = backend.result_consumer
    members = {backend.get_key_for_task(member.id) for member in result.parent.results}
    before = members & consumer.subscribed_to

    with pytest.raises(NotInTime):
        result.get(timeout=0.5)
    gone = before - consumer.subscribed_to
    gate.open()

    if celery_version() >= celery_5_7:  # older ones lose subscriptions themselves
        assert len(before) >= SIZE
        assert not gone
        assert list(range(SIZE)) == result.parent.get(timeout=20)
    assert list(range(SIZE)) == with_fix.run(result)


def test_error_in_a_large_header_is_raised_before_the_chord_ends(with_fix, few_announced, gate):
    t = with_fix.tasks
    stragglers = [t.wait_for_file.s(gate.path) for _ in range(SIZE)]
    result = chord([t.fail.s(), *stragglers], t.collect.s()).apply_async()

    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=10)
    gate.open()
    assert "FAILURE" == with_fix.outcome(result).state


def test_error_of_a_member_is_raised_rather_than_that_of_the_chord(with_fix, few_announced):
    """What the members did is looked at once more when the chord has ended."""
    t = with_fix.tasks
    header = [*(t.slow.s(i, 0.01) for i in range(SIZE)), t.fail.s()]

    with pytest.raises(ValueError, match="boom"):
        chord(header, t.collect.s()).apply_async().get(timeout=20)
