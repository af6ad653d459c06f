from __future__ import annotations

import time

from celery.utils import uuid

from tests.unit.ledger.chords import LATER, THREADS, at_once, is_due, start


def test_chord_is_due_when_it_was_said(ledger):
    now = time.time()
    early, late = start(ledger, ["a"], due=now - 1), start(ledger, ["a"], due=now + 1)

    taken = ledger.take_due(now, now + LATER, 10_000)

    assert early in taken
    assert late not in taken


def test_chord_that_was_taken_is_due_again_later(ledger):
    now = time.time()
    group_id = start(ledger, ["a"], due=now - 1)

    assert group_id in ledger.take_due(now, now + 60, 10_000)
    assert group_id not in ledger.take_due(now + 59, now + 120, 10_000)
    assert group_id in ledger.take_due(now + 61, now + 120, 10_000)


def test_those_that_are_due_for_longest_are_taken_first(ledger):
    group_ids = [start(ledger, ["a"], due=float(due)) for due in (30, 10, 20)]

    taken = [ledger.take_due(50.0, 100.0 + n, 1) for n in range(4)]

    assert [[group_ids[1]], [group_ids[2]], [group_ids[0]], []] == taken
    for group_id in group_ids:
        ledger.close(group_id)


def test_each_is_taken_once(ledger):
    now = time.time()
    group_ids = {start(ledger, ["a"], due=now - 1) for _ in range(20)}

    taken = at_once([lambda: ledger.take_due(now, now + LATER, 8)] * THREADS)

    taken = [group_id for ids in taken for group_id in ids if group_id in group_ids]
    assert len(taken) == len(set(taken))
    while found := ledger.take_due(now, now + LATER, 8):
        taken += [group_id for group_id in found if group_id in group_ids]
    assert sorted(group_ids) == sorted(taken)


def test_look_again_says_when(ledger, group_id):
    now = time.time()

    ledger.look_again(group_id, now + 10)

    assert not is_due(ledger, group_id, now + 9)
    assert is_due(ledger, group_id, now + 11)


def test_unknown_chord_is_never_due(ledger):
    group_id = uuid()

    ledger.look_again(group_id, 1.0)

    assert not is_due(ledger, group_id, time.time())
    assert ledger.read(group_id) is None


def test_chord_that_has_ended_is_never_due(ledger, group_id):
    ledger.close(group_id)

    assert not is_due(ledger, group_id, time.time() + 2 * LATER)
