"""Mend a chord because somebody asks for it: repair it, settle it, or revoke it.

The commands and the page for operators do it here, in the same words.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..ledger.packing import leaf_ids
from ..lifecycle.settlement import Settlement
from ..upstream.results import chunks, ready_states
from .evidence import examine
from .kinds import UNKNOWN, Diagnosis
from .repair import Action, actions_for, carry_out, resending
from .survey import Chord

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.model import Ledger

__all__ = ("advice", "carry_out_if_same", "plans", "revoke_members", "settle")

#: Seconds for which a chord that a worker is just ending is waited for.
ENDING_SECONDS = 10.0

#: Seconds for which workers are waited for to answer that they have revoked tasks.
REVOKING_SECONDS = 1.0


def advice(chord: Chord) -> str:
    """Return what to do about a chord."""
    if chord.found.kind == UNKNOWN:
        return "look again when what is missing is back"
    if chord.remedy:
        return f"celery chords repair {chord.id} ({chord.remedy})"
    if chord.is_stuck:
        return "wait: its producer may still be sending it"
    return f"nothing is wrong but its age; to give it up: celery chords revoke {chord.id}"


def plans(ledger: Ledger, chord: Chord, *, is_resending: bool) -> Sequence[Action]:
    """Return what repairs a chord, as far as the evidence supports it."""
    resent = resending(ledger, chord.found) if is_resending else []
    return resent or (actions_for(chord.found) if chord.is_stuck else [])


def carry_out_if_same(ledger: Ledger, found: Diagnosis, action: Action) -> Action:
    """Do what `action` says, unless the chord has moved since it was diagnosed."""
    if found.record is None or _has_moved(ledger, found):
        return replace(action, reason="it has moved meanwhile", is_done=False)
    return replace(action, is_done=carry_out(ledger, found, action))


def _has_moved(ledger: Ledger, found: Diagnosis) -> bool:
    record = ledger.read(found.group_id)
    return record is None or found.record is None or record.returned != found.record.returned


def revoke_members(app: Celery, chords: Iterable[Diagnosis], *, is_terminating: bool) -> None:
    """Revoke the members of chords that are not done.

    Arguments:
        app: The app.
        chords: The chords.
        is_terminating: Whether members that run are ended, too.
    """
    ids = [id_ for found in chords for id_ in leaf_ids(found.header or ())]
    done = ready_states(app.backend, ids)
    for chunk in chunks([id_ for id_ in ids if id_ not in done]):
        app.control.revoke(
            list(chunk), terminate=is_terminating, reply=True, timeout=REVOKING_SECONDS
        )


def settle(ledger: Ledger, found: Diagnosis, why: str) -> Action:
    """Settle a chord, unless it ends by itself: members without a result count as failed."""
    action = Action("abort", found.group_id, why, settlement=Settlement.by_request())
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        now: Any = examine(ledger, found.group_id)
        if now.record is None or carry_out(ledger, now, action):
            return replace(action, is_done=True)
        if time.monotonic() > deadline:
            return replace(action, reason=f"{why}, but {now.reason}", is_done=False)
        time.sleep(0.2)
