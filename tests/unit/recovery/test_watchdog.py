from __future__ import annotations

import os
import time

import celery
import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import ChordError
from celery.utils import uuid

from chordguard import signals, tolerant
from chordguard.ledger import claims
from chordguard.ledger.claims import CLAIM_SECONDS
from chordguard.ledger.packing import pack_data
from chordguard.ledger.redis import RedisLedger
from chordguard.lifecycle.settlement import Settlement
from chordguard.recovery import processes, watchdog
from chordguard.recovery.checkup import checkup
from chordguard.recovery.evidence import examine
from chordguard.recovery.watchdog import Watchdog
from tests import tasks
from tests.unit.ledger.chords import expire_claim, is_due, rewrite
from tests.unit.recovery.started import Chord, broker_away, empty_ledger, published


@pytest.fixture(params=["redis", "sqlite"])
def ledger(request, servers, require, tmp_path):
    require(*({request.param} - {"sqlite"}))
    with empty_ledger(request.param, servers, tmp_path) as ledger:
        yield ledger


def look(chord, header=None, body=None, **options):
    found = examine(chord.ledger, chord.group_id, header=header, body=body)
    return checkup(chord.ledger, found, **options)


def be_quiet(chord, seconds=60.0):
    """Let nothing have happened to the chord for so many seconds."""
    rewrite(chord.ledger, chord.group_id, "progressed", time.time() - seconds)


@pytest.fixture
def told():
    """What the signals told of each chord."""
    told = []

    def tell(group_id, action, **_):
        told.append((group_id, action))

    for signal in (signals.chord_repaired, signals.chord_settled):
        signal.connect(tell)
    yield told
    for signal in (signals.chord_repaired, signals.chord_settled):
        signal.disconnect(tell)


class TestRunning:
    def test_chord_is_looked_at_again(self, ledger):
        chord = Chord(ledger)
        chord.end(0)

        assert 30.0 == look(chord)

        assert (1, 0) == (chord.record.returned, chord.record.claimed_until)
        assert [] == chord.published()

    def test_the_longer_nothing_happened_the_later(self, ledger):
        chord = Chord(ledger)
        for idle, expected in ((10, 30), (100, 100), (1000, 300)):
            be_quiet(chord, idle)
            assert expected == pytest.approx(look(chord), abs=5)

    def test_when_the_chord_may_time_out(self, ledger):
        chord = Chord(ledger, tolerant(tasks.named(ledger.backend.app).collect.s(), timeout=20))
        be_quiet(chord, 8)

        assert 12 == pytest.approx(look(chord), abs=2)

    def test_who_looks_may_have_a_pace(self, ledger):
        assert 7.0 == look(Chord(ledger), pace=7.0)

    def test_interval_is_a_setting(self, ledger):
        ledger.backend.app.conf.chord_watchdog_interval = 3

        assert 3.0 == look(Chord(ledger))

    def test_results_that_were_stored_just_now_are_left_to_their_workers(self, ledger):
        chord = Chord(ledger)
        chord.store(0)

        assert 30.0 == look(chord)
        assert 0 == chord.record.returned

    def test_unknown_chord_has_ended(self, ledger):
        assert checkup(ledger, examine(ledger, uuid())) is None

    def test_chord_that_somebody_ends_is_left_alone(self, ledger):
        chord = Chord(ledger)
        claimed = [chord.end(index) for index in range(2)]
        be_quiet(chord)

        assert 1 <= look(chord, settlement=Settlement.by_request()) <= CLAIM_SECONDS

        assert [] == chord.published()
        assert ledger.renew(claimed[1])


class TestPartLost:
    def test_it_is_recounted(self, ledger, told):
        chord = Chord(ledger, size=3)
        chord.end(0)
        chord.store(1)
        be_quiet(chord)

        assert 30.0 == look(chord)

        assert 2 == chord.record.returned
        assert [(chord.group_id, "recount")] == told
        assert [] == chord.published()

    def test_last_one_ends_the_chord(self, ledger):
        chord = Chord(ledger, size=3)
        for index in (0, 2):
            chord.end(index)
        chord.store(1)
        be_quiet(chord)

        assert look(chord) is None

        assert [[0, 1, 2]] == chord.published()
        assert chord.record is None

    def test_all_of_them_may_be_lost(self, ledger):
        chord = Chord(ledger)
        for index in range(2):
            chord.store(index)
        be_quiet(chord)

        assert look(chord) is None
        assert [[0, 1]] == chord.published()

    def test_one_that_failed_fails_the_chord(self, ledger):
        chord = Chord(ledger)
        chord.end(0)
        chord.store(1, "FAILURE")
        be_quiet(chord)

        assert look(chord) is None

        state, error = chord.outcome
        assert "FAILURE" == state
        assert f"Dependency {chord.ids[1]} raised ValueError('boom')" in str(error)

    def test_one_that_the_broker_keeps_from_ending_is_ended_later(self, ledger):
        chord = Chord(ledger, size=1)
        chord.store(0)
        be_quiet(chord)
        with broker_away(chord.app):
            assert look(chord)
        be_quiet(chord)

        assert look(chord) is None
        assert [[0]] == chord.published()


class TestReady:
    def count_all(self, ledger):
        chord = Chord(ledger)
        for index in range(2):
            chord.end(index)
        expire_claim(ledger, chord.group_id)
        return chord

    def test_chord_whose_claim_ran_out_is_published_once(self, ledger, told):
        chord = self.count_all(ledger)

        assert [None, None] == [look(chord) for _ in range(2)]

        assert [[0, 1]] == chord.published()
        assert [(chord.group_id, "fire")] == told

    def test_chord_whose_claim_was_given_back_is_published_once(self, ledger):
        chord = Chord(ledger)
        claimed = [chord.end(index) for index in range(2)]
        ledger.release(claimed[1])
        assert 30.0 == look(chord)
        be_quiet(chord)

        assert [None, None] == [look(chord) for _ in range(2)]

        assert [[0, 1]] == chord.published()

    @pytest.mark.parametrize("state", ["STARTED", "SUCCESS", "FAILURE"])
    def test_chord_whose_body_has_a_result_is_forgotten(self, ledger, state, told):
        chord = self.count_all(ledger)
        result = ValueError("boom") if state == "FAILURE" else None
        chord.app.backend.store_result(chord.body.id, result, state)

        assert look(chord) is None

        assert [] == chord.published()
        assert chord.record is None
        assert [(chord.group_id, "forget")] == told

    def test_chord_whose_result_is_not_there_yet_waits(self, ledger):
        chord = Chord(ledger, tasks.named(ledger.backend.app).collect.s(), size=1)
        rewrite(ledger, chord.group_id, "claimed_until", 1.0)

        assert look(chord)

        assert 0 == chord.record.claimed_until
        assert [] == chord.published()


class TestSettling:
    def overdue(self, ledger, mark=lambda body: body, **options):
        ledger.backend.app.conf.chord_timeout = 20
        chord = Chord(ledger, mark(tasks.named(ledger.backend.app).collect.s()), **options)
        chord.end(0)
        be_quiet(chord, 21)
        return chord

    def test_chord_that_is_overdue_fails_and_names_who_is_missing(self, ledger, told):
        chord = self.overdue(ledger)

        assert look(chord) is None

        state, error = chord.outcome
        assert "FAILURE" == state
        assert isinstance(error, ChordError)
        assert "seconds without progress (chord_timeout = 20)" in str(error)
        assert f"no result of 1 of 2 header tasks: {chord.ids[1]}" in str(error)
        assert [] == chord.published()
        assert chord.record is None
        assert [(chord.group_id, "fail-members")] == told

    def test_tolerant_one_gets_who_is_lost(self, ledger):
        chord = self.overdue(ledger, tolerant)

        assert look(chord) is None

        ((first, second),) = chord.published()
        assert 0 == first
        assert second.startswith("ChordMemberLost: ")

    def test_what_was_not_counted_is_counted_first(self, ledger):
        chord = self.overdue(ledger)
        chord.store(1)

        assert look(chord) is None
        assert [[0, 1]] == chord.published()

    def test_chord_without_all_of_its_members_is_settled(self, ledger):
        if not isinstance(ledger, RedisLedger):
            pytest.skip("the size comes with the header")
        chord = self.overdue(ledger)
        ledger.backend.client.delete(ledger.key(chord.group_id, ".s"))
        ledger.backend.client.hdel(ledger.key(chord.group_id, ".chordguard"), "size")

        assert look(chord) is None

        assert f"no result of 1 of 2 header tasks: {chord.ids[1]}" in str(chord.outcome[1])

    def test_chord_whose_members_were_never_told_fails(self, ledger):
        chord = self.overdue(ledger, header=())

        assert look(chord) is None

        assert [] == chord.published()
        assert "FAILURE" == chord.outcome[0]

    def test_who_looks_may_settle_it(self, ledger, told):
        chord = Chord(ledger)
        chord.end(0)

        assert look(chord, settlement=Settlement.polled_out(3, 2)) is None

        assert chord.ids[1] in str(chord.outcome[1])
        assert [(chord.group_id, "abort")] == told

    def test_who_looks_may_know_the_members(self, ledger):
        chord = Chord(ledger, header=())
        for index in range(2):
            chord.end(index)
        assert chord.record.header is None
        be_quiet(chord)

        assert look(chord, header=chord.ids, body=dict(chord.body)) is None
        assert [[0, 1]] == chord.published()


class TestOtherApps:
    """On the same result backend, with tasks that this app does not know."""

    def stranger(self, ledger):
        body = tasks.named(ledger.backend.app).collect.s()
        body["task"] = "theirs.collect"
        return Chord(ledger, body, due=1.0)

    def watch(self, ledger):
        assert 1 == Watchdog(ledger.backend.app).look_at_due()

    def test_their_chord_is_left_alone(self, ledger):
        ledger.backend.app.conf.chord_timeout = 20
        chord = self.stranger(ledger)
        for index in range(2):
            chord.store(index)
        be_quiet(chord, 1000)

        self.watch(ledger)

        assert (0, 0) == (chord.record.returned, chord.record.claimed_until)
        assert [] == chord.published()

    def test_ours_is_looked_after(self, ledger):
        chord = Chord(ledger, size=1, due=1.0)
        chord.store(0)
        be_quiet(chord)

        self.watch(ledger)

        assert chord.record is None
        assert [[0]] == chord.published()

    def test_chord_that_somebody_asks_for_is_looked_after(self, ledger):
        chord = self.stranger(ledger)
        for index in range(2):
            chord.store(index)
        be_quiet(chord)

        assert look(chord) is None
        assert [[0, 1]] == chord.published()

    def test_their_chord_may_be_in_a_serializer_that_we_do_not_accept(self, ledger, caplog):
        other = Celery("other", set_as_current=False)
        other.conf.task_serializer = "pickle"
        body = other.signature("theirs.collect").set(task_id=uuid())
        group_id = uuid()
        ledger.open(group_id, ["a"], pack_data(other, body), 1.0, None)

        self.watch(ledger)

        assert "" == caplog.text
        assert ledger.read(group_id)
        assert not is_due(ledger, group_id, time.time() + 25)


class TestWorkersWithoutThePatches:
    """What they ended is not ended again, where the ledger has not seen how it was counted."""

    def start(self, ledger):
        chord = Chord(ledger)
        for index in range(2):
            chord.store(index)
        return chord

    def test_chord_whose_body_has_a_result_is_forgotten(self, ledger):
        chord = self.start(ledger)
        chord.app.backend.store_result(chord.body.id, [0, 1], "SUCCESS")
        be_quiet(chord)

        assert look(chord) is None

        assert [] == chord.published()
        assert chord.record is None

    @pytest.mark.parametrize("ledger", ["redis"], indirect=True)
    @pytest.mark.parametrize(
        "is_late",
        [
            pytest.param(False, id="each part once"),
            pytest.param(
                True,
                id="one part again",
            ),
        ],
    )
    def test_chord_whose_parts_they_deleted_is_forgotten(self, ledger, is_late, monkeypatch):
        chord = self.start(ledger)
        # There Celery 5.2 looks for nested headers.
        monkeypatch.setattr(celery._state._tls, "current_app", chord.app)
        for index in [0, 1, 0] if is_late else [0, 1]:
            request = Context(
                id=chord.ids[index],
                group=chord.group_id,
                group_index=index,
                chord=dict(chord.body),
            )
            chord.app.backend.on_chord_part_return(request, "SUCCESS", index)
        assert [[0, 1]] == chord.published()
        # From 5.7 on Celery leaves a mark, for some minutes.
        ledger.backend.client.delete(ledger.key(chord.group_id, ".c"))
        be_quiet(chord)

        assert look(chord) is None

        assert [] == chord.published()
        assert chord.record is None


class TestWatchdog:
    def test_each_chord_that_is_due_is_looked_at(self, ledger):
        due, later = Chord(ledger, size=1, due=1.0), Chord(ledger, size=1)
        for chord in (due, later):
            chord.store(0)
            be_quiet(chord)

        assert 1 == Watchdog(ledger.backend.app).look_at_due()

        assert due.record is None
        assert 0 == later.record.returned

    def test_chord_that_is_well_is_due_again_later(self, ledger):
        chord = Chord(ledger, due=1.0)
        dog = Watchdog(ledger.backend.app)

        assert [1, 0] == [dog.look_at_due() for _ in range(2)]

        assert not is_due(ledger, chord.group_id, time.time() + 25)
        assert is_due(ledger, chord.group_id, time.time() + 31)

    def test_more_chords_than_are_taken_at_once(self, ledger, monkeypatch):
        monkeypatch.setattr(watchdog, "BATCH", 2)
        for _ in range(5):
            Chord(ledger, due=1.0)

        assert 5 == Watchdog(ledger.backend.app).look_at_due()

    def test_chord_that_cannot_be_looked_at_does_not_keep_others_from_it(
        self, ledger, caplog, monkeypatch
    ):
        broken, chord = Chord(ledger, size=1, due=1.0), Chord(ledger, size=1, due=2.0)
        rewrite(ledger, broken.group_id, "header", "[broken")
        chord.store(0)
        be_quiet(chord)

        assert 2 == Watchdog(ledger.backend.app).look_at_due()

        assert f"Could not check chord {broken.group_id}" in caplog.text
        assert [[0]] == published(ledger.backend.app)
        assert not is_due(ledger, broken.group_id, time.time() + 50)

    @pytest.mark.parametrize("ledger", ["redis"], indirect=True)
    def test_chord_that_has_expired_is_not_due_for_ever(self, ledger):
        chord = Chord(ledger, due=1.0)
        keys = [ledger.key(chord.group_id, name) for name in (".chordguard", ".s", ".j")]
        ledger.backend.client.delete(*keys)

        assert 1 == Watchdog(ledger.backend.app).look_at_due()

        assert not is_due(ledger, chord.group_id, time.time() + 86400)

    def test_it_looks_until_it_is_stopped(self, ledger):
        app = ledger.backend.app
        app.conf.chord_watchdog_interval = 0.05
        chord = Chord(ledger, size=1, due=1.0)
        chord.store(0)
        be_quiet(chord)
        dog = Watchdog(app)
        dog.start()
        end = time.monotonic() + 10
        while chord.record is not None and time.monotonic() < end:
            time.sleep(0.02)
        dog.stop()

        assert [[0]] == published(app)
        assert not dog._thread.is_alive()

    def test_chord_whose_ender_has_died_is_published_at_once(self, ledger, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with monkeypatch.context() as patched:
            # A worker that left its file, which nobody has open.
            patched.setattr(claims, "owner", claims.new_owner())
            os.close(processes._locked_file(claims.owner))
            chord = Chord(ledger)
            assert [True, False] == [chord.end(index) is None for index in range(2)]

        assert 1 == Watchdog(ledger.backend.app).look_at_due()

        assert [[0, 1]] == chord.published()
        assert chord.record is None

    def test_app_without_a_ledger_has_nothing_to_look_at(self, ledger):
        ledger.backend.app.conf.chord_ledger = False

        assert 0 == Watchdog(ledger.backend.app).look_at_due()
