from __future__ import annotations

import os
import signal
import threading

import pytest
from celery import chord

from chordguard.ledger import claims
from chordguard.patches.worker.uninterrupted_parts import SIGNALS, SOFT_LIMIT, held_off

on_all = pytest.mark.parametrize("backend_kind", ["redis", "sqlite", "postgresql"])


def interrupted(t):
    return chord([t.echo.s(1), t.over_its_limit_when_stored.s(2)], t.collect.s())


@on_all
def test_chord_does_not_get_what_was_returned(without_fix):
    outcome = without_fix.outcome(interrupted(without_fix.tasks), quiet=1.5)

    assert outcome.hung or outcome.state == "FAILURE"


@on_all
def test_chord_gets_what_was_returned(with_fix):
    assert [1, 2] == with_fix.run(interrupted(with_fix.tasks))


@on_all
def test_limit_that_strikes_a_task_of_no_chord_is_the_pools(with_fix):
    assert 1 == with_fix.run(with_fix.tasks.echo.s(1))


@pytest.fixture
def received(monkeypatch):
    """The signals that came to this process, which is thought to be a child of a pool."""
    monkeypatch.setattr(claims, "pool_process", os.getpid())
    came = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS
    }
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def test_soft_limit_is_over_with_the_task(received):
    with held_off():
        os.kill(os.getpid(), SOFT_LIMIT)
    assert [] == received
    os.kill(os.getpid(), SOFT_LIMIT)
    assert [SOFT_LIMIT] == received


@pytest.mark.parametrize("number", [number for number in SIGNALS if number != SOFT_LIMIT])
class TestHeldOff:
    def test_signal_comes_when_the_block_is_over(self, received, number):
        with held_off():
            os.kill(os.getpid(), number)
            assert [] == received
        assert [number] == received

    def test_signal_comes_when_the_block_raises(self, received, number):
        def block():
            with held_off():
                os.kill(os.getpid(), number)
                raise LookupError

        with pytest.raises(LookupError):
            block()
        assert [number] == received

    def test_handler_is_what_it_was(self, received, number):
        before = signal.getsignal(number)
        with held_off():
            assert signal.getsignal(number) is not before
        assert signal.getsignal(number) is before

    def test_process_outside_a_pool_is_left_alone(self, received, number, monkeypatch):
        monkeypatch.setattr(claims, "pool_process", 0)
        with held_off():
            os.kill(os.getpid(), number)
            assert [number] == received

    def test_other_threads_cannot_set_handlers(self, received, number):
        done = []

        def work():
            with held_off():
                done.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert [True] == done
