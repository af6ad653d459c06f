from __future__ import annotations

import os
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils import uuid

from chordguard.ledger import claims
from chordguard.ledger.claims import CLAIM_SECONDS, new_owner
from tests.unit.ledger.chords import (
    LATER,
    THREADS,
    at_once,
    count,
    expire_claim,
    is_due,
    part_of,
    rewrite,
    start,
)


def test_claim_of_nobody_keeps_no_other_from_being_ended(ledger):
    """The row of the first is damaged: it is claimed, and by nobody."""
    damaged, dead = start(ledger, ["a"]), start(ledger, ["b"])
    rewrite(ledger, damaged, "claimed_until", time.time() + 30)
    ledger.look_again(damaged, time.time() + 30)
    assert ledger.claim(dead)

    assert 1 <= ledger.expire(lambda token: token.startswith(claims.owner))
    assert ledger.claim(dead)


class TestAsking:
    @pytest.mark.parametrize(
        "exception", [SoftTimeLimitExceeded, MemoryError, SystemExit, GeneratorExit]
    )
    def test_claim_is_given_back_when_somebody_interrupts(self, ledger, exception):
        group_id = start(ledger, ["a"])

        def interrupted():
            with ledger.asking(group_id) as token:
                assert ledger.claim(group_id, token)
                raise exception

        with pytest.raises(exception):
            interrupted()
        assert ledger.claim(group_id)

    def test_part_that_was_the_last_one_gives_it_back_too(self, ledger):
        group_id = start(ledger, ["a"])

        def interrupted():
            with ledger.asking(group_id) as token:
                assert ledger.count(group_id, part_of(ledger, "a"), token)
                raise SystemExit

        with pytest.raises(SystemExit):
            interrupted()
        assert ledger.claim(group_id)

    def test_claim_of_somebody_else_is_kept(self, ledger):
        group_id = start(ledger, ["a"])
        assert ledger.claim(group_id)

        def interrupted():
            with ledger.asking(group_id) as token:
                assert ledger.claim(group_id, token) is None
                raise SystemExit

        with pytest.raises(SystemExit):
            interrupted()
        assert ledger.claim(group_id) is None

    def test_claim_is_kept_when_the_block_is_over(self, ledger):
        group_id = start(ledger, ["a"])
        with ledger.asking(group_id) as token:
            claim = ledger.claim(group_id, token)
        assert claim.token == token
        assert ledger.claim(group_id) is None


class TestClaiming:
    def test_chord_is_claimed_once(self, ledger, group_id):
        answers = at_once([lambda: ledger.claim(group_id)] * THREADS)

        (claim,) = filter(None, answers)
        assert ["a", ["b"], "c"] == claim.header

    def test_unknown_chord_cannot_be_claimed(self, ledger):
        assert ledger.claim(uuid()) is None

    def test_chord_that_has_ended_cannot_be_claimed(self, ledger, group_id):
        ledger.close(group_id)

        assert ledger.claim(group_id) is None

    def test_released_chord_can_be_claimed(self, ledger, group_id):
        ledger.release(ledger.claim(group_id))

        assert 0 == ledger.read(group_id).claimed_until
        assert ledger.claim(group_id)

    def test_released_chord_is_due_at_once(self, ledger, group_id):
        claim = ledger.claim(group_id)
        assert not is_due(ledger, group_id, time.time())

        ledger.release(claim)

        assert is_due(ledger, group_id, time.time())

    @pytest.mark.parametrize("by", ["claim", "count"])
    def test_claimed_chord_is_due_when_the_claim_ends(self, ledger, group_id, by):
        if by == "claim":
            ledger.claim(group_id)
        else:
            count(ledger, group_id, "abc")
        until = ledger.read(group_id).claimed_until

        assert not is_due(ledger, group_id, until - 1)
        assert is_due(ledger, group_id, until + 1)

    def test_expired_claim_is_none(self, ledger, group_id):
        first = ledger.claim(group_id)
        expire_claim(ledger, group_id)

        second = ledger.claim(group_id)
        ledger.release(first)

        assert second.token != first.token
        assert ledger.claim(group_id) is None

    def test_last_part_claims_what_an_expired_claim_was_for(self, ledger, group_id):
        ledger.claim(group_id)
        expire_claim(ledger, group_id)

        assert [False, False, True] == [
            claim is not None for claim in count(ledger, group_id, "abc")
        ]


class TestRenewing:
    def test_claim_that_is_renewed_lasts_longer(self, ledger, group_id, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 10.0)
            claim = ledger.claim(group_id)
        assert ledger.read(group_id).claimed_until <= time.time() + 11

        assert ledger.renew(claim)

        until = ledger.read(group_id).claimed_until
        assert CLAIM_SECONDS - 30 < until - time.time() <= CLAIM_SECONDS
        assert ledger.claim(group_id) is None
        assert not is_due(ledger, group_id, until - 1)
        assert is_due(ledger, group_id, until + 1)

    def test_claim_that_somebody_else_has_is_lost(self, ledger, group_id):
        first = ledger.claim(group_id)
        expire_claim(ledger, group_id)
        second = ledger.claim(group_id)

        assert not ledger.renew(first)
        assert ledger.renew(second)

    def test_claim_on_a_chord_that_has_ended_is_lost(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.close(group_id)

        assert not ledger.renew(claim)
        assert ledger.read(group_id) is None

    def test_claim_that_was_given_back_is_lost(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.release(claim)

        assert not ledger.renew(claim)
        assert 0 == ledger.read(group_id).claimed_until


class TestReleasingAll:
    def test_claims_of_others_are_left(self, ledger, monkeypatch):
        owner = "chordguard.ledger.claims.owner"
        monkeypatch.setattr(owner, new_owner())
        theirs = start(ledger, ["a"])
        assert ledger.claim(theirs)
        monkeypatch.setattr(owner, new_owner())
        mine, counted_here, free = (start(ledger, ["a"]) for _ in range(3))
        assert ledger.claim(mine)
        assert all(count(ledger, counted_here, "a"))
        claimed = [mine, counted_here]
        # On Redis the end of a claim is rounded to milliseconds.
        time.sleep(0.002)

        assert 2 == ledger.release_all()

        assert all(0 < ledger.read(group_id).claimed_until < time.time() for group_id in claimed)
        due = ledger.take_due(time.time(), time.time() + LATER, 10_000)
        assert set(claimed) <= set(due)
        assert not {theirs, free} & set(due)
        assert ledger.read(theirs).claimed_until > time.time()
        assert ledger.claim(theirs) is None
        assert 0 == ledger.release_all()


class TestExpiring:
    def expire(self, ledger, *claimed):
        tokens = [claim.token for claim in claimed]
        return ledger.expire(lambda token: token in tokens)

    @pytest.mark.parametrize("by", ["claim", "count"])
    def test_claim_that_is_expired_has_just_run_out(self, ledger, group_id, by):
        claim = ledger.claim(group_id) if by == "claim" else count(ledger, group_id, "abc")[-1]

        assert 1 == self.expire(ledger, claim)

        assert 0 < ledger.read(group_id).claimed_until < time.time()
        assert is_due(ledger, group_id, time.time())
        assert 0 == self.expire(ledger, claim)
        assert ledger.claim(group_id)

    def test_chord_that_is_due_before_the_claim_ends(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.look_again(group_id, time.time() - 1)

        assert 1 == self.expire(ledger, claim)

    def test_others_keep_theirs(self, ledger, group_id):
        claim = ledger.claim(group_id)

        assert 0 == self.expire(ledger)
        assert ledger.renew(claim)

    def test_chord_that_has_ended_stays_so(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.close(group_id)

        assert 0 == self.expire(ledger, claim)
        assert ledger.read(group_id) is None


class TestTokens:
    def test_they_name_worker_and_process_of_the_pool(self, monkeypatch):
        monkeypatch.setattr(claims, "pool_process", os.getpid())
        token = claims.new_token()

        assert (claims.owner, claims.process_mark(os.getpid())) == claims.origin(token)
        assert 36 == len(token)
        assert token != claims.new_token()

    @pytest.mark.parametrize("process", [0, 1], ids=["none of the pool", "forked from one"])
    def test_other_processes_are_not_named(self, process, monkeypatch):
        monkeypatch.setattr(claims, "pool_process", process)

        assert (claims.owner, claims.process_mark(0)) == claims.origin(claims.new_token())
