from __future__ import annotations

import time

from celery.utils import uuid

from chordguard.ledger.checked import body_of
from chordguard.ledger.packing import pack_data
from tests import tasks
from tests.unit.ledger.chords import LATER, at_once, count, in_sql, start


class TestOpening:
    def test_chord_is_known_from_then_on(self, ledger, group_id):
        record = ledger.read(group_id)

        assert (3, 0, 0) == (record.size, record.returned, record.claimed_until)
        assert ["a", ["b"], "c"] == record.header
        assert time.time() - 60 < record.created <= record.progressed <= time.time()
        assert not record.is_complete
        assert not record.is_over
        assert record.body is None
        assert ledger.read(uuid()) is None

    def test_body_is_kept(self, ledger):
        app = ledger.backend.app
        body = tasks.named(app).collect.s(record="r\u017e").set(task_id="body")

        group_id = start(ledger, ["a"], body=pack_data(app, body))

        kept, _ = body_of(app, ledger.read(group_id).body)
        assert (body.task, body.kwargs, body.id) == (kept.task, kept.kwargs, kept.id)

    def test_opened_twice_goes_on(self, ledger, group_id):
        count(ledger, group_id, "a")

        # On Redis the same chord: another one has another id.
        ledger.open(group_id, ["a", ["b"], "c"], None, time.time() + LATER, None)

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "bc")]

    def test_members_may_be_told_later(self, ledger):
        group_id = start(ledger, None)
        assert [None] == count(ledger, group_id, "a")
        assert ledger.read(group_id).size is None
        assert ledger.read(group_id).header is None

        ledger.set_header(group_id, ["a", ["b"]])

        assert (2, ["a", ["b"]]) == (ledger.read(group_id).size, ledger.read(group_id).header)
        assert ["a", ["b"]] == count(ledger, group_id, "b")[0].header

    def test_members_that_are_told_after_all_of_them_returned_leave_the_chord_to_be_claimed(
        self, ledger
    ):
        group_id = start(ledger, None)
        assert [None] == count(ledger, group_id, "a")

        ledger.set_header(group_id, ["a"])

        assert ledger.read(group_id).is_complete
        assert ["a"] == ledger.claim(group_id).header

    def test_header_may_be_large(self, ledger):
        header = [uuid() for _ in range(10_000)]

        assert header == ledger.claim(start(ledger, header)).header


class TestAdding:
    def test_members_come_after_those_of_the_header(self, ledger, group_id):
        assert ledger.add(group_id, [["d", "e"], "f"])

        assert 6 == ledger.read(group_id).size
        assert ["a", ["b"], "c", ["d", "e"], "f"] == ledger.claim(group_id).header

    def test_members_may_come_before_those_of_the_header(self, ledger):
        group_id = start(ledger, None)

        assert ledger.add(group_id, ["d"])
        ledger.set_header(group_id, ["a"])

        assert 2 == ledger.read(group_id).size
        assert {"a", "d"} == set(ledger.claim(group_id).header)

    def test_members_that_come_at_once_are_all_there(self, ledger, group_id):
        members = [uuid() for _ in range(16)]

        assert all(
            at_once(lambda member=member: ledger.add(group_id, [member]) for member in members)
        )

        assert 19 == ledger.read(group_id).size
        header = ledger.claim(group_id).header
        assert ["a", ["b"], "c"] == header[:3]
        assert sorted(members) == sorted(header[3:])

    def test_chord_that_is_being_ended_takes_none(self, ledger, group_id):
        ledger.claim(group_id)

        assert not ledger.add(group_id, ["d"])
        assert 3 == ledger.read(group_id).size

    @in_sql
    def test_unknown_chord_takes_none(self, ledger):
        assert not ledger.add(uuid(), ["d"])
