from __future__ import annotations

import logging
import time
from datetime import timedelta

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import ChordError
from hypothesis import given
from hypothesis import strategies as st

from chordguard import log, strict, tolerant
from chordguard.ledger.access import ledger_of
from chordguard.ledger.claims import Keeper
from chordguard.ledger.redis import RedisLedger
from chordguard.ledger.sql import DatabaseLedger
from chordguard.lifecycle import counting, ending, safety_net
from chordguard.lifecycle.settlement import Settlement
from chordguard.log import _warned
from tests import tasks
from tests.harness import wait_until
from tests.unit.ledger.chords import expire_claim
from tests.unit.recovery.started import Chord, broker_away, empty_ledger


@pytest.fixture(params=["redis", "sqlite"])
def ledger(request, servers, require, tmp_path):
    require(*({request.param} - {"sqlite"}))
    with empty_ledger(request.param, servers, tmp_path) as ledger:
        yield ledger


@pytest.fixture
def app():
    app = Celery("counting", broker="memory://", backend="db+sqlite://", set_as_current=False)
    tasks.register(app)
    return app


@pytest.fixture
def t(app):
    return tasks.named(app)


class TestLedger:
    def test_redis_and_databases_have_one(self, app):
        on_redis = Celery("counting", backend="redis://localhost", set_as_current=False)

        assert isinstance(ledger_of(app.backend), DatabaseLedger)
        assert isinstance(ledger_of(on_redis.backend), RedisLedger)

    def test_other_backends_have_none(self):
        app = Celery("counting", backend="cache+memory://", set_as_current=False)

        assert ledger_of(app.backend) is None

    def test_setting_decides_where_it_is_asked(self, app):
        app.conf.chord_ledger = False

        assert ledger_of(app.backend) is None
        assert ledger_of(app.backend, asked=False)

    def test_database_that_is_away_has_none(self, app, caplog, monkeypatch):
        monkeypatch.setattr(log, "_warned", set())
        monkeypatch.setattr(DatabaseLedger, "is_usable", fail)

        assert [None, None] == [ledger_of(app.backend) for _ in range(2)]
        assert 1 == caplog.text.count("Cannot reach the ledger")


class TestDelays:
    def test_safety_net_looks_late_and_seldom(self, app):
        delays = [safety_net.next_delay(app, look) for look in range(6)]

        assert 30.0 == safety_net.first_delay(app, None)
        assert [30.0, 60.0, 120.0, 240.0, 300.0, 300.0] == delays

    @pytest.mark.parametrize("value", [5, timedelta(seconds=5)])
    def test_first_delay_is_a_setting(self, app, value):
        app.conf.chord_unlock_first_delay = value

        assert 5.0 == safety_net.first_delay(app, None)
        assert [5.0, 10.0] == [safety_net.next_delay(app, look) for look in range(2)]

    def test_it_never_looks_all_the_time(self, app):
        app.conf.chord_unlock_first_delay = 0

        assert 0.0 == safety_net.first_delay(app, None)
        assert [1.0, 2.0] == [safety_net.next_delay(app, look) for look in range(2)]

    def test_it_looks_when_the_chord_may_time_out(self, app, t):
        app.conf.chord_timeout = 20

        assert 20.0 == safety_net.first_delay(app, None)
        assert 10.0 == safety_net.first_delay(app, strict(t.collect.s(), timeout=10))
        assert 30.0 == safety_net.first_delay(app, strict(t.collect.s(), timeout=None))


@given(look=st.integers(0, 10**6), first=st.floats(0, 10**6))
def test_delay_never_leaves_its_bounds(look, first):
    app = Celery("bounds", set_as_current=False)
    app.conf.chord_unlock_first_delay = first

    assert 1.0 <= safety_net.next_delay(app, look) <= safety_net.SLOWEST


def test_safety_net_of_a_chord_has_an_id_of_its_own():
    assert safety_net.unlock_id("a") == safety_net.unlock_id("a")
    assert safety_net.unlock_id("a") != safety_net.unlock_id("b")
    assert 36 == len(safety_net.unlock_id("a"))


class TestParts:
    def part(self, app, name, result=None, **options):
        request = Context(id="a", task=tasks.PREFIX + name, **options)
        return counting.part_of(ledger_of(app.backend), request, "SUCCESS", result)

    def test_result_that_is_stored_is_not_brought_along(self, app):
        assert self.part(app, "echo").payload is None

    @pytest.mark.parametrize(
        ("name", "options"), [("ignored_result", {}), ("echo", {"ignore_result": True})]
    )
    def test_result_that_is_ignored_is_brought_along(self, app, name, options):
        part = self.part(app, name, {"b": [1]}, **options)

        assert "a" == part.task_id
        assert isinstance(part.payload, bytes)
        assert ["SUCCESS", {"b": [1]}] == list(app.backend.decode(part.payload))

    @pytest.mark.parametrize(("index", "place"), [(None, "+inf"), (0, "0"), (7, "7")])
    def test_on_redis_it_is_as_celery_keeps_it(self, index, place):
        app = Celery("counting", backend="redis://localhost", set_as_current=False)

        part = self.part(app, "echo", {"b": [1]}, group_index=index)

        assert ("a", place, False) == (part.task_id, part.index, part.is_recounted)
        assert [1, "a", "SUCCESS", {"b": [1]}] == list(app.backend.decode(part.payload))


class TestCounting:
    def request(self, chord, index):
        return Context(
            id=chord.ids[index],
            task=f"{tasks.PREFIX}echo",
            group=chord.group_id,
            group_index=index,
            chord=dict(chord.body),
        )

    def test_last_part_ends_the_chord(self, ledger):
        chord = Chord(ledger)

        for index in (1, 0):
            chord.store(index)
            counting.count(ledger, self.request(chord, index), "SUCCESS", index)

        assert [[0, 1]] == chord.published()
        assert chord.record is None

    def test_part_that_cannot_be_counted_is_said_and_not_raised(self, ledger, monkeypatch, caplog):
        chord = Chord(ledger)
        monkeypatch.setattr(log, "_warned", set())
        monkeypatch.setattr(ledger, "count", fail)

        for index in (0, 1):
            counting.count(ledger, self.request(chord, index), "SUCCESS", index)

        assert 1 == caplog.text.count("Could not count a member of chord")
        assert 0 == chord.record.returned

    def test_chord_that_cannot_be_ended_is_said_and_left_to_others(
        self, ledger, monkeypatch, caplog
    ):
        chord = Chord(ledger, size=1)
        chord.store(0)
        with monkeypatch.context() as patched:
            patched.setattr(ledger, "collect", fail)
            counting.count(ledger, self.request(chord, 0), "SUCCESS", 0)

        assert f"Could not complete chord {chord.group_id}" in caplog.text
        assert [] == chord.published()
        assert ledger.claim(chord.group_id)


def fail(*_, **__):
    raise OSError("broken")


class TestEnding:
    def end(self, chord, claim, **options):
        return ending.end(chord.ledger, claim, dict(chord.body), **options)

    def test_body_gets_the_results_in_header_order(self, ledger):
        chord = Chord(ledger, size=3)
        claims = [chord.end(index) for index in (2, 0, 1)]

        assert self.end(chord, claims[-1])

        assert [[0, 1, 2]] == chord.published()
        assert chord.record is None

    def test_chord_that_was_taken_over_and_then_ended_is_not_ended_again(self, ledger, monkeypatch):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)
        collect = ledger.collect

        def collect_slowly(claim):
            collected = collect(claim)
            # Who had it before was only slow, and has ended it now.
            ledger.close(chord.group_id)
            return collected

        monkeypatch.setattr(ledger, "collect", collect_slowly)

        assert not self.end(chord, claim, takes_over=True)

        assert [] == chord.published()

    def test_member_that_failed_fails_a_strict_chord(self, ledger):
        chord = Chord(ledger)
        chord.end(0)

        assert self.end(chord, chord.end(1, "FAILURE"))

        state, error = chord.outcome
        assert "FAILURE" == state
        assert isinstance(error, ChordError)
        assert f"Dependency {chord.ids[1]} raised ValueError('boom')" in str(error)
        assert [] == chord.published()
        assert chord.record is None

    def test_member_that_failed_is_handed_to_the_body_of_a_tolerant_one(self, ledger):
        chord = Chord(ledger, tolerant(tasks.named(ledger.backend.app).collect.s()))
        chord.end(0)

        assert self.end(chord, chord.end(1, "FAILURE"))

        assert [[0, "ValueError: boom"]] == chord.published()

    def test_chord_with_a_result_that_is_not_stored_waits(self, ledger, caplog):
        chord = Chord(ledger)
        chord.end(0)

        assert not self.end(chord, ledger.claim(chord.group_id))

        assert f"the results of {chord.ids[1]} are not stored yet" in caplog.text
        assert (1, 0) == (chord.record.returned, chord.record.claimed_until)
        assert [] == chord.published()

    def test_chord_that_is_settled_names_the_members_without_a_result(self, ledger):
        chord = Chord(ledger)
        chord.end(0)

        assert self.end(chord, ledger.claim(chord.group_id), settlement=Settlement.by_request())

        state, error = chord.outcome
        assert "FAILURE" == state
        assert f"Chord {chord.group_id} was settled by request" in str(error)
        assert f"no result of 1 of 2 header tasks: {chord.ids[1]}" in str(error)
        assert chord.record is None

    def test_tolerant_chord_that_is_settled_hands_over_that_they_are_lost(self, ledger):
        chord = Chord(ledger, tolerant(tasks.named(ledger.backend.app).collect.s()))
        chord.end(0)

        assert self.end(chord, ledger.claim(chord.group_id), settlement=Settlement.by_request())

        ((first, second),) = chord.published()
        assert 0 == first
        assert second.startswith("ChordMemberLost: ")

    def test_broker_that_is_away_leaves_the_chord_to_others(self, ledger, caplog):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)

        with broker_away(chord.app):
            assert not self.end(chord, claim)

        assert "Cannot publish the body of chord" in caplog.text
        assert 0 == chord.record.claimed_until
        assert [] == chord.published()

    def test_what_fails_is_raised_and_the_claim_given_back(self, ledger, monkeypatch):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)
        monkeypatch.setattr(ledger, "collect", fail)

        with pytest.raises(OSError, match="broken"):
            self.end(chord, claim)

        assert 0 == chord.record.claimed_until

    def test_chord_that_was_ended_but_not_forgotten_stays_claimed(self, ledger, monkeypatch):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)
        monkeypatch.setattr(ledger, "close", fail)

        with pytest.raises(OSError, match="broken"):
            self.end(chord, claim)

        assert [[0]] == chord.published()
        assert ledger.claim(chord.group_id) is None

    def test_claim_is_renewed_for_as_long_as_it_takes(self, ledger, monkeypatch):
        chord = Chord(ledger, size=1)
        monkeypatch.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 1.0)
        monkeypatch.setattr("chordguard.ledger.claims.held", Keeper().held)
        claim = chord.end(0)
        collect, was_there = ledger.collect, []

        def collect_slowly(claim):
            end = time.time() + 1.5
            wait_until(lambda: time.time() > end, what="the time of a claim")
            was_there.append(ledger.claim(chord.group_id))
            return collect(claim)

        monkeypatch.setattr(ledger, "collect", collect_slowly)

        assert self.end(chord, claim)
        assert [None] == was_there

    def test_claim_that_cannot_be_renewed_does_not_stop_it(self, ledger, monkeypatch, caplog):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)
        monkeypatch.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 0.03)
        monkeypatch.setattr("chordguard.ledger.claims.held", Keeper().held)
        monkeypatch.setattr(ledger, "renew", fail)
        collect = ledger.collect

        def collect_slowly(claim):
            wait_until(lambda: "Cannot renew the claim" in caplog.text)
            return collect(claim)

        monkeypatch.setattr(ledger, "collect", collect_slowly)
        _warned.clear()
        with caplog.at_level(logging.WARNING):
            assert self.end(chord, claim)

        assert [[0]] == chord.published()

    def test_who_has_lost_the_claim_does_not_publish(self, ledger, monkeypatch):
        chord = Chord(ledger, size=1)
        claim = chord.end(0)
        collect = ledger.collect

        def collect_late(claim):
            found = collect(claim)
            expire_claim(ledger, chord.group_id)
            assert ledger.claim(chord.group_id)
            monkeypatch.setattr("chordguard.ledger.claims.CLAIM_SECONDS", 0)
            return found

        monkeypatch.setattr(ledger, "collect", collect_late)

        assert not self.end(chord, claim)
        assert [] == chord.published()
