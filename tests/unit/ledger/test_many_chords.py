from __future__ import annotations

from celery.app.task import Context
from celery.utils import uuid

from tests.unit.ledger.chords import count, start


def test_all_live_ones_are_told(ledger, group_id):
    other = start(ledger, ["d"])

    assert {group_id, other} <= set(ledger.group_ids())
    ledger.close(other)
    assert other not in ledger.group_ids()


def test_they_are_read_together(ledger, group_id):
    other = start(ledger, ["d", "e"])
    count(ledger, other, "d")

    found = ledger.read_all([group_id, other, "unknown"])

    assert {group_id, other} == found.keys()
    assert [(3, 0), (2, 1)] == [(found[id_].size, found[id_].returned) for id_ in (group_id, other)]
    assert ["a", ["b"], "c"] == found[group_id].header
    ledger.close(other)


def test_members_that_failed_are_told(ledger, group_id):
    members = {uuid(): state for state in ("SUCCESS", "FAILURE", "REVOKED", "FAILURE")}
    other = start(ledger, [*members])
    for index, (task_id, state) in enumerate(members.items()):
        value = "FAILURE" if state == "SUCCESS" else ValueError(state)
        ledger.backend.store_result(task_id, value, state)
        if index < 3:
            request = Context(id=task_id, group_index=index, task="any")
            ledger.count(other, ledger.part_of(request, state, value, is_ignored=False))

    found = ledger.read_all([group_id, other])
    assert [0, 2] == [found[id_].failed for id_ in (group_id, other)]
    ledger.close(other)


def test_overview_tells_how_far_all_of_them_are(ledger, group_id):
    other = start(ledger, ["d", "e"])
    count(ledger, other, ["d"])

    found = {record.group_id: record for record in ledger.overview()}

    assert (2, 1, 0, None, None) == (
        found[other].size,
        found[other].returned,
        found[other].failed,
        found[other].header,
        found[other].body,
    )
    known = ledger.read_all([group_id, other])
    for id_, record in known.items():
        assert (record.created, record.progressed) == (found[id_].created, found[id_].progressed)
        assert (record.size, record.returned) == (found[id_].size, found[id_].returned)
    ledger.close(other)
    assert other not in {record.group_id for record in ledger.overview()}


def test_overview_tells_of_large_chords(ledger):
    large = start(ledger, [f"m{number}" for number in range(200)])
    count(ledger, large, ["m0", "m1", "m150"])

    (found,) = [record for record in ledger.overview() if record.group_id == large]

    assert (200, 3) == (found.size, found.returned)
    ledger.close(large)
