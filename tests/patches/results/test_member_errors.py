from __future__ import annotations

from threading import Thread

import pytest
from celery import chain, chord
from celery.exceptions import ChordError

#: Seconds between two looks at a result; a chord ends within less.
INTERVAL = 2.0


@pytest.fixture(params=["sqlite", "postgresql"])
def backend_kind(request):
    return request.param


def late_failure(t, gate):
    """Return a chord with a member that fails as soon as the gate is open."""
    return chord(
        [t.echo.s(1), chain(t.wait_for_file.s(gate.path), t.fail_after.s())], t.collect.s()
    )


def error_of_late_failure(cluster, gate, wait):
    """Return what `wait` raises for a chord that fails and ends between two of its looks."""
    result = late_failure(cluster.tasks, gate).apply_async()
    raised = []

    def run():
        try:
            wait(result)
        except Exception as exc:
            raised.append(exc)

    waiting = Thread(target=run)
    waiting.start()
    # The first look finds neither: the gate is shut.
    waiting.join(INTERVAL / 4)
    gate.open()
    waiting.join(20)
    assert not waiting.is_alive()
    return raised[0]


def test_get_raises_the_chord_error_of_a_chord_that_ended_meanwhile(without_fix, gate):
    error = error_of_late_failure(without_fix, gate, lambda r: r.get(timeout=20, interval=INTERVAL))

    assert isinstance(error, ChordError)


WAYS = {
    "get": lambda result: result.get(timeout=20, interval=INTERVAL),
    "collect": lambda result: list(result.collect(timeout=20, interval=INTERVAL)),
    "join": lambda result: result.app.ResultSet([result]).join(timeout=20, interval=INTERVAL),
    "wait": lambda result: result.wait(timeout=20, interval=INTERVAL),
}


@pytest.mark.parametrize("way", WAYS)
def test_waiting_raises_the_members_error(with_fix, gate, way):
    error = error_of_late_failure(with_fix, gate, WAYS[way])

    assert isinstance(error, ValueError)
    assert "boom" == str(error)


@pytest.mark.cluster(settings={"chord_ledger": False})
def test_waiting_for_a_polled_chord_raises_the_members_error(with_fix, gate):
    error = error_of_late_failure(with_fix, gate, WAYS["get"])

    assert isinstance(error, ValueError)


def test_failed_chord_always_raises_the_members_error(with_fix):
    t = with_fix.tasks

    for _ in range(15):
        result = chord([t.echo.s(1), t.fail.s()], t.collect.s()).apply_async()
        with pytest.raises(ValueError, match="boom"):
            result.get(timeout=20)


def test_error_of_the_body_itself_stays(with_fix):
    t = with_fix.tasks

    with pytest.raises(ValueError, match="body"):
        chord([t.echo.s(1)], t.fail_after.s(message="body")).apply_async().get(timeout=20)


def test_chord_error_is_raised_where_parents_are_not_followed(with_fix, gate):
    error = error_of_late_failure(
        with_fix, gate, lambda r: r.get(timeout=20, interval=INTERVAL, follow_parents=False)
    )

    assert isinstance(error, ChordError)
