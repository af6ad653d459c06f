"""Claims are renewed for as long as they are held, by a thread that does not stay."""

from __future__ import annotations

import os
import threading

import pytest

from chordguard.ledger.claims import Keeper
from tests.harness import wait_until


@pytest.fixture
def keeper(monkeypatch):
    monkeypatch.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 0.15)
    return Keeper()


def threads():
    return [each for each in threading.enumerate() if each.name == "chordguard-claims"]


def test_claims_are_renewed_by_one_thread(keeper):
    before = len(threads())
    renewals: dict[str, int] = {"a": 0, "b": 0}

    def renew(name):
        renewals[name] += 1
        return True

    with keeper.held(lambda: renew("a")), keeper.held(lambda: renew("b")):
        wait_until(lambda: min(renewals.values()) > 1, what="renewals")
        assert before + 1 == len(threads())

    seen = dict(renewals)
    wait_until(lambda: len(threads()) == before, what="an end of the thread")
    assert seen == renewals


def test_thread_that_ended_is_started_again(keeper):
    before = len(threads())
    for _ in range(2):
        renewed = threading.Event()
        with keeper.held(lambda renewed=renewed: renewed.set() or True):
            assert renewed.wait(10)
        wait_until(lambda: len(threads()) == before, what="an end of the thread")


def test_what_is_not_due_is_not_asked_for(keeper, monkeypatch):
    monkeypatch.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 60)
    asked = []

    with keeper.held(lambda: bool(asked.append(1))) as is_ours:
        assert is_ours()
        assert [] == asked
        assert not is_ours(at_once=True)
        assert [1] == asked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_child_of_a_process_that_holds_one_has_a_thread_of_its_own(keeper):
    with keeper.held(lambda: True):
        pid = os.fork()
        if pid == 0:
            renewed = threading.Event()
            with keeper.held(lambda: renewed.set() or True):
                os._exit(0 if renewed.wait(10) else 1)
        assert 0 == os.waitpid(pid, 0)[1]
