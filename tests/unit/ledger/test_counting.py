from __future__ import annotations

import time

import pytest
from celery.utils import uuid

from chordguard.failures import record_of
from chordguard.ledger.claims import CLAIM_SECONDS
from chordguard.ledger.model import ChordUnknown, Part
from chordguard.upstream.results import StoredResult
from tests.unit.ledger.chords import (
    OWN,
    at_once,
    count,
    counted,
    in_sql,
    on,
    part_of,
    request_of,
    rewrite,
    start,
)


class TestCounting:
    def test_last_part_claims_the_chord(self, ledger, group_id):
        claims = count(ledger, group_id, "bca")

        assert [None, None] == claims[:2]
        assert (group_id, ["a", ["b"], "c"]) == (claims[2].group_id, claims[2].header)
        assert ledger.read(group_id).is_complete
        left = ledger.read(group_id).claimed_until - time.time()
        assert CLAIM_SECONDS - 30 < left <= CLAIM_SECONDS

    def test_part_counts_once(self, ledger, group_id):
        assert [None] * 5 == count(ledger, group_id, "aabab")

        assert 2 == ledger.read(group_id).returned
        assert {"a", "b"} == counted(ledger, group_id)

    def test_part_that_comes_twice_with_different_results_counts_once(self, ledger, group_id):
        for result in (1, 2):
            assert ledger.count(group_id, part_of(ledger, "a", result)) is None

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "bc")]

    def test_last_part_claims_once(self, ledger, group_id):
        claims = count(ledger, group_id, "abccc")

        assert 1 == len(list(filter(None, claims)))
        assert claims[2]

    def test_part_is_progress(self, ledger, group_id):
        rewrite(ledger, group_id, "progressed", 1.0)

        count(ledger, group_id, "a")

        assert time.time() - 60 < ledger.read(group_id).progressed

    def test_part_that_comes_again_is_no_progress(self, ledger, group_id):
        count(ledger, group_id, "a")
        rewrite(ledger, group_id, "progressed", 1.0)

        count(ledger, group_id, "a")

        assert 1.0 == ledger.read(group_id).progressed

    @pytest.mark.parametrize("is_first", [True, False], ids=["recounted first", "recounted last"])
    def test_part_that_is_recounted_counts_once(self, ledger, group_id, is_first):
        parts = [
            part_of(ledger, "b", "from the task", index=7),
            ledger.part_from(StoredResult("b", "SUCCESS", "stored"), 1),
        ]
        for part in reversed(parts) if is_first else parts:
            assert ledger.count(group_id, part) is None

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "ac")]

    def test_recounted_part_may_be_the_last(self, ledger, group_id):
        count(ledger, group_id, "ac")

        claim = ledger.count(group_id, ledger.part_from(StoredResult("b", "SUCCESS", 1), 1))

        assert ["a", ["b"], "c"] == claim.header

    def test_parts_that_come_at_once_claim_once(self, ledger):
        members = [uuid() for _ in range(24)]
        group_id = start(ledger, members)

        claims = at_once(
            lambda member=member: ledger.count(group_id, part_of(ledger, member))
            for member in members * 2
        )

        (claim,) = filter(None, claims)
        assert members == claim.header
        assert len(members) == ledger.read(group_id).returned
        assert set(members) == counted(ledger, group_id)

    def test_parts_of_many_chords_do_not_mix(self, ledger):
        group_ids = [start(ledger, ["a", "b", "c", "d"]) for _ in range(6)]

        claims = at_once(
            lambda group_id=group_id, task_id=task_id: ledger.count(
                group_id, part_of(ledger, task_id)
            )
            for task_id in "abcd"
            for group_id in group_ids
        )

        assert sorted(group_ids) == sorted(claim.group_id for claim in claims if claim)

    @in_sql
    def test_part_of_an_unknown_chord_leaves_nothing(self, ledger):
        group_id = uuid()

        assert [None] == count(ledger, group_id, "a")
        assert set() == ledger.counted(group_id)

    def test_late_part_of_a_chord_that_has_ended_leaves_nothing(self, ledger, group_id):
        ledger.close(group_id)

        assert [None] == count(ledger, group_id, "a")
        assert set() == counted(ledger, group_id)
        assert ledger.read(group_id) is None

    def test_last_part_claims_nothing_while_somebody_ends_the_chord(self, ledger, group_id):
        ledger.claim(group_id)

        assert [None] * 3 == count(ledger, group_id, "abc")
        assert 3 == ledger.read(group_id).returned

    @in_sql
    def test_results_that_are_brought_along_are_kept(self, ledger, group_id):
        payload = b'\x00\xff["\xc5\xbe"]' * 20_000
        ledger.count(group_id, Part("a", payload))
        ledger.count(group_id, Part("b"))
        ledger.count(group_id, Part("a", b"second"))

        assert {"a": payload} == ledger.payloads(group_id)


class TestResults:
    def store(self, ledger, task_id, result, state="SUCCESS"):
        ledger.results.store_result(task_id, result, state)
        return task_id

    @pytest.fixture
    def ids(self):
        return [uuid() for _ in range(4)]

    def test_outstanding_are_those_that_were_not_counted(self, ledger, ids):
        header = [ids[0], [ids[1], ids[2]], ids[3]]
        group_id = start(ledger, header)
        for task_id in ids[:2]:
            self.store(ledger, task_id, 1)
        self.store(ledger, ids[2], None, "STARTED")
        count(ledger, group_id, ids[:1])

        found = ledger.outstanding({group_id: header})[group_id]

        assert [(ids[1], "SUCCESS")] == [(r.task_id, r.state) for r in found.uncounted]
        assert tuple(ids[2:]) == found.missing

    def test_results_are_collected(self, ledger, ids):
        header = [ids[0], [ids[1]], ids[2], ids[3]]
        group_id = start(ledger, header)
        self.store(ledger, ids[0], {"a": [1]})
        self.store(ledger, ids[1], ValueError("boom"), "FAILURE")
        self.store(ledger, ids[2], None, "STARTED")
        ledger.count(group_id, part_of(ledger, ids[0], {"a": [1]}))

        collected, results = ledger.collect(ledger.claim(group_id))

        assert header == collected
        assert set(ids[:2]) == results.keys()
        assert {"a": [1]} == results[ids[0]].value
        assert results[ids[1]].failed

    def test_result_that_is_ignored_is_collected(self, ledger, ids):
        group_id = start(ledger, ids[:1])
        request = request_of(ids[0])

        claim = ledger.count(
            group_id, ledger.part_of(request, "SUCCESS", {"b": 1}, is_ignored=True)
        )

        assert {"b": 1} == ledger.collect(claim)[1][ids[0]].value

    def test_members_that_were_added_are_collected(self, ledger, ids):
        group_id = start(ledger, ids[:1])
        ledger.add(group_id, ids[1:2])

        claims = [ledger.count(group_id, part_of(ledger, id_, n)) for n, id_ in enumerate(ids[:2])]
        for n, task_id in enumerate(ids[:2]):
            self.store(ledger, task_id, n)

        assert claims[0] is None
        header, results = ledger.collect(claims[1])
        assert ids[:2] == header
        assert [0, 1] == [results[task_id].value for task_id in header]


@pytest.mark.parametrize("kind", on(*OWN))
class TestStoreOfItsOwn:
    def test_chord_that_is_not_here_is_told(self, ledger):
        """Another ledger may know it: a part leaves nothing behind here."""
        group_id = uuid()

        with pytest.raises(ChordUnknown):
            ledger.count(group_id, part_of(ledger, "a", 1))

        assert set() == counted(ledger, group_id)
        assert ledger.read(group_id) is None

    def test_results_are_those_of_the_parts(self, ledger):
        """It does not matter what the result store keeps."""
        ids = [uuid() for _ in range(2)]
        group_id = start(ledger, ids)
        ledger.results.store_result(ids[0], "another", "SUCCESS")
        request = request_of(ids[1])
        error = ValueError("boom")

        ledger.count(group_id, part_of(ledger, ids[0], {"a": [1]}))
        claim = ledger.count(group_id, ledger.part_of(request, "FAILURE", error, is_ignored=False))

        _, results = ledger.collect(claim)
        assert {"a": [1]} == results[ids[0]].value
        assert "ValueError: boom" == record_of(results[ids[1]], 1)["text"]
        assert [] == ledger.vanished(group_id, ids)

    def test_stored_result_that_was_not_counted_is_counted_with_its_value(self, ledger):
        ids = [uuid() for _ in range(2)]
        group_id = start(ledger, ids)
        ledger.results.store_result(ids[0], {"a": 1}, "SUCCESS")
        ledger.results.store_result(ids[1], ValueError("boom"), "FAILURE")

        found = ledger.outstanding({group_id: ids})[group_id].uncounted
        parts = [ledger.part_from(result, n) for n, result in enumerate(found)]
        claims = [ledger.count(group_id, part) for part in parts]

        for task_id in ids:
            ledger.results.forget(task_id)
        _, results = ledger.collect(claims[-1])
        assert {"a": 1} == results[ids[0]].value
        assert "ValueError: boom" == record_of(results[ids[1]], 1)["text"]
