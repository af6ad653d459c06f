"""Diagnose chords from the ledger and the stored results alone.

The watchdog and the safety net act on this. It asks no worker, and takes a few queries for any
number of chords.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kombu.exceptions import ContentDisallowed

from ..ledger import checked
from ..ledger.model import Ledger, Outstanding, Record
from ..ledger.packing import Header
from ..policy import timeout_of
from ..upstream import backends
from ..upstream.results import StoredResult, read_results
from ..upstream.signatures import task_ids, waiting_for
from .kinds import (
    BODY_DONE,
    CLAIM_EXPIRED,
    MEMBER_LOST,
    PART_LOST,
    READY,
    RUNNING,
    SIZE_MISSING,
    UNKNOWN,
    Diagnosis,
)

__all__ = (
    "examine",
    "examine_all",
)


#: Seconds without progress before anything is thought to be wrong: what a worker without the
#: patches does in two steps takes less.
QUIET_SECONDS = 5.0


def examine(
    ledger: Ledger,
    group_id: str,
    *,
    header: Header | None = None,
    body: Mapping[str, Any] | None = None,
    is_thorough: bool = False,
) -> Diagnosis:
    """Diagnose a chord from the ledger and the stored results alone.

    Arguments:
        ledger: Where it is counted.
        group_id: The chord.
        header: Its members' ids, where the caller knows them and the ledger may not.
        body: Its body, likewise.
        is_thorough: Look for results of members even if there was progress just now.
    """
    record = ledger.read(group_id)
    found = [_unexamined(ledger, group_id, record, header, body)]
    return _examined(ledger, found, is_thorough=is_thorough)[0]


def examine_all(
    ledger: Ledger, group_ids: Sequence[str], *, is_thorough: bool = False
) -> list[Diagnosis]:
    """Diagnose chords as `examine` does, with a few queries for all of them together.

    Arguments:
        ledger: Where they are counted.
        group_ids: The chords.
        is_thorough: Look for results of members even if there was progress just now.
    """
    records = ledger.read_all(group_ids)
    found = [_unexamined(ledger, id_, records.get(id_)) for id_ in group_ids]
    return _examined(ledger, found, is_thorough=is_thorough)


def _unexamined(
    ledger: Ledger,
    group_id: str,
    record: Record | None,
    header: Header | None = None,
    body: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Return what the ledger alone tells of a chord, which may be all."""
    if record is None:
        return Diagnosis(
            group_id,
            UNKNOWN,
            "the ledger does not know it: it has ended, or was started without the patches",
        )
    try:
        return _unexamined_record(ledger, record, header, body)
    except backends.errors(ledger.backend):
        raise
    except Exception as exc:  # noqa: BLE001 - it is told; the others are looked at all the same
        reason = f"it cannot be read: {checked.in_a_line(exc)}"
        return Diagnosis(group_id, UNKNOWN, reason, replace(record, damage=reason))


def _unexamined_record(
    ledger: Ledger, record: Record, header: Header | None, body: Mapping[str, Any] | None
) -> Diagnosis:
    app = ledger.backend.app
    now = time.time()
    body_damage = None
    if body is None and record.body is not None:
        try:
            body, body_damage = checked.body_of(app, record.body)
        except ContentDisallowed as exc:
            # Perhaps another app's.
            reason = f"its body cannot be read: {type(exc).__name__}: {exc}"
            return Diagnosis(record.group_id, UNKNOWN, reason, record)
    found = Diagnosis(
        record.group_id,
        RUNNING,
        "",
        replace(record, damage=record.damage or body_damage),
        record.header if record.header is not None else header,
        body,
        idle=max(0.0, now - record.progressed),
        timeout=None if body is None else timeout_of(app, body),
        body_ids=() if body is None else tuple(task_ids(waiting_for(body))),
        body_damage=body_damage,
    )
    if record.is_over and not record.lost:
        return replace(found, kind=BODY_DONE, reason="a worker without the patches has ended it")
    if record.claimed_until > now:
        return replace(found, reason="a worker is just ending it")
    if found.record is not None and found.record.damage:
        return replace(found, kind=UNKNOWN, reason=found.record.damage)
    return found


def _examined(ledger: Ledger, chords: Sequence[Diagnosis], *, is_thorough: bool) -> list[Diagnosis]:
    """Look for the results that matter, and decide what is the matter with each chord."""
    undecided = [found for found in chords if not found.reason]
    headers = {
        found.group_id: found.header
        for found in undecided
        if found.header is not None
        and not _is_counted(found)
        and (found.idle >= QUIET_SECONDS or is_thorough)
    }
    outstanding = ledger.outstanding(headers)
    body_ids = [
        task_id
        for found in undecided
        if _may_be_published(found, outstanding.get(found.group_id))
        for task_id in found.body_ids
    ]
    bodies = read_results(ledger.results, body_ids)
    chords = [_with_vanished(ledger, found) for found in chords]
    return [
        found
        if found.reason
        else _decided(found, outstanding.get(found.group_id), bodies, is_thorough)
        for found in chords
    ]


def _with_vanished(ledger: Ledger, found: Diagnosis) -> Diagnosis:
    """Look for counted members of an overdue chord that have no result any more."""
    if found.reason or not (_is_counted(found) and found.is_overdue and found.header):
        return found
    return replace(found, missing=tuple(ledger.vanished(found.group_id, found.header)))


def _is_counted(found: Diagnosis) -> bool:
    """Tell whether all parts were counted, as far as anybody knew who claimed the chord."""
    record = found.record
    return record is not None and bool(record.is_complete or record.claimed_until)


def _may_be_published(found: Diagnosis, outstanding: Outstanding | None) -> bool:
    is_whole = outstanding is not None and not outstanding.missing
    is_suspect = found.record is not None and found.record.is_over
    return is_whole or is_suspect or _is_counted(found) or found.is_overdue


def _decided(
    found: Diagnosis,
    outstanding: Outstanding | None,
    bodies: Mapping[str, StoredResult],
    is_thorough: bool,
) -> Diagnosis:
    """Name what is the matter with a chord; `bodies` are the results that bodies have."""
    states = []
    if _may_be_published(found, outstanding):
        states = [f"{id_} is {bodies[id_].state}" for id_ in found.body_ids if id_ in bodies]
    if states:
        kind, reason = BODY_DONE, f"its body has been published: {', '.join(states)}"
    elif _is_counted(found):
        kind, reason = _when_counted(found)
    else:
        kind, reason = _when_counting(found, outstanding, is_thorough)
    if outstanding is None:
        return replace(found, kind=kind, reason=reason)
    missing, uncounted = outstanding.missing, outstanding.uncounted
    return replace(found, kind=kind, reason=reason, missing=missing, uncounted=uncounted)


def _when_counted(found: Diagnosis) -> tuple[str, str]:
    record: Any = found.record
    if found.missing:
        gone = ", ".join(found.missing)
        return MEMBER_LOST, f"members were counted whose results are gone: {gone}"
    if record.claimed_until:
        ago = time.time() - record.claimed_until
        return CLAIM_EXPIRED, f"the claim of the worker that ended it ran out {ago:.0f} s ago"
    if found.idle < QUIET_SECONDS:
        return RUNNING, "its last part has just been counted"
    return READY, f"all {record.size} members are done for {found.idle:.0f} s"


def _when_counting(
    found: Diagnosis, outstanding: Outstanding | None, is_thorough: bool
) -> tuple[str, str]:
    record: Any = found.record
    size = "?" if record.size is None else record.size
    returned = f"{record.returned} of {size} members are done"
    if record.lost:
        returned += f", the ledger has lost its {', '.join(record.lost)}"
    if outstanding is not None and outstanding.uncounted:
        counted = f"{len(outstanding.uncounted)} more have a result that was not counted"
        return PART_LOST, f"{returned}, {counted}"
    if record.size is None:
        if outstanding is not None and not outstanding.missing:
            return READY, f"all {record.returned} members are done, its size was never told"
        if found.is_overdue or is_thorough:
            return SIZE_MISSING, f"{returned}: its last member was not sent for {found.idle:.0f} s"
    if found.is_overdue:
        bound = f"chord_timeout = {found.timeout:g}"
        return MEMBER_LOST, f"{returned}, no progress for {found.idle:.0f} s ({bound})"
    return RUNNING, f"{returned}, the last one {found.idle:.0f} s ago"
