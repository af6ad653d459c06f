"""Mend a chord: what the evidence of a diagnosis supports, and what somebody asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from celery.canvas import maybe_signature
from kombu.utils.uuid import uuid

from .. import signals
from ..ledger.access import required_ledger
from ..ledger.model import Ledger
from ..ledger.packing import Header, leaf_ids, unpack_data
from ..ledger.tallies import ENDED, End
from ..lifecycle import counting, ending, safety_net
from ..lifecycle.settlement import Settlement
from .diagnosis import diagnose
from .kinds import (
    BODY_DONE,
    CLAIM_EXPIRED,
    MEMBER_LOST,
    PART_LOST,
    POLLER_LOST,
    READY,
    SIZE_MISSING,
    Diagnosis,
)

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Action", "actions_for", "carry_out", "carry_out_all", "repair", "resending")

logger = logging.getLogger("chordguard")


@dataclass(frozen=True)
class Action:
    """Something that mends a chord.

    Attributes:
        name: "fire", "recount", "fail-members", "resend", "requeue", "abort" or "forget".
        group_id: The chord.
        reason: What it is done for, in a sentence.
        is_done: Whether it was done; None: it was only asked for.
        settlement: Why the chord ends before its members are done, if it settles it.
    """

    name: str
    group_id: str
    reason: str
    is_done: bool | None = None
    settlement: Settlement | None = None


def actions_for(diagnosis: Diagnosis) -> list[Action]:
    """Return what mends the chord, as far as the evidence supports it."""
    names = {
        READY: "fire",
        CLAIM_EXPIRED: "fire",
        BODY_DONE: "forget",
        PART_LOST: "recount",
        MEMBER_LOST: "fail-members",
        SIZE_MISSING: "fail-members",
        POLLER_LOST: "requeue",
    }
    name = names.get(diagnosis.kind)
    if diagnosis.is_damaged and _may_settle(diagnosis):
        name = "fail-members"
    if name is None or (diagnosis.kind == SIZE_MISSING and not diagnosis.is_overdue):
        return []
    if diagnosis.body is None and name != "forget":
        return []
    why = _why_settle(diagnosis) if name == "fail-members" else None
    return [Action(name, diagnosis.group_id, diagnosis.reason, settlement=why)]


def _may_settle(diagnosis: Diagnosis) -> bool:
    """Tell whether a damaged chord may be settled.

    One whose results are not known is left for as long again to a safety net, whose message may
    hold the whole body.
    """
    if diagnosis.timeout is None or diagnosis.body_ids:
        return diagnosis.is_overdue
    return diagnosis.idle >= 2 * diagnosis.timeout


def carry_out(ledger: Ledger, diagnosis: Diagnosis, action: Action) -> bool:
    """Do what `action` says; return whether it was done, not left to somebody else."""
    done = _ACTIONS[action.name](ledger, diagnosis, action)
    if done:
        logger.warning("Chord %s: %s, for %s", action.group_id, action.name, action.reason)
        is_repaired = action.settlement is None
        signal = signals.chord_repaired if is_repaired else signals.chord_settled
        signal.send(
            sender=ledger.backend.app,
            group_id=action.group_id,
            reason=action.reason,
            action=action.name,
        )
    return done


def carry_out_all(ledger: Ledger, diagnosis: Diagnosis, actions: Sequence[Action]) -> list[Action]:
    """Do what `actions` say; return them with whether each was done."""
    return [replace(action, is_done=carry_out(ledger, diagnosis, action)) for action in actions]


def repair(
    app: Celery, chord: str | Any, *, dry_run: bool = True, resend: bool = False
) -> list[Action]:
    """Repair a chord as far as the evidence supports it.

    Arguments:
        app: An app with the patches.
        chord: The result that starting the chord returned, or the id of its header.
        dry_run: Only return what would be done.
        resend: Send lost members again rather than have them fail. They may run twice: one that
            was lost in a worker may have done its work. Needs ``chord_store_signatures``.

    Returns:
        What was done, or would be.

    Raises:
        LedgerMissing: The app has no ledger, or it cannot be used.
        TypeError: `chord` is neither an id nor the result of a chord.
    """
    diagnosis = diagnose(app, chord)
    ledger = required_ledger(app)
    actions = actions_for(diagnosis)
    if resend:
        actions = resending(ledger, diagnosis) or actions
    if dry_run:
        return actions
    return carry_out_all(ledger, diagnosis, actions)


def resending(ledger: Ledger, diagnosis: Diagnosis) -> list[Action]:
    """Return what sends the lost members of a chord again; nothing where that is not possible."""
    if diagnosis.kind != MEMBER_LOST or not _lost_signatures(ledger, diagnosis):
        return []
    return [Action("resend", diagnosis.group_id, diagnosis.reason)]


def _end(ledger: Ledger, diagnosis: Diagnosis, action: Action) -> bool:
    with ledger.asking(diagnosis.group_id) as token:
        claim = ledger.claim(diagnosis.group_id, token)
        if claim is None:
            return False
        return ending.end(
            ledger,
            claim,
            diagnosis.body,
            settlement=action.settlement,
            takes_over=True,
            is_body_damaged=diagnosis.body_damage is not None,
        )


def _why_settle(diagnosis: Diagnosis) -> Settlement:
    """Return why a chord is settled whose members are lost."""
    if diagnosis.timeout is not None and diagnosis.is_overdue:
        why = Settlement.overdue(diagnosis.idle, diagnosis.timeout)
    else:
        why = Settlement.because(diagnosis.reason)
    if diagnosis.record is not None and diagnosis.record.lost:
        why = why.noting(f"the ledger has lost its {', '.join(diagnosis.record.lost)}")
    if diagnosis.is_damaged:
        why = why.noting(diagnosis.reason)
    return why


def _resend(ledger: Ledger, diagnosis: Diagnosis, _: Action) -> bool:
    members = _lost_signatures(ledger, diagnosis)
    for member in members:
        member.apply_async(chord=diagnosis.body, add_to_parent=False)
    return bool(members)


def _lost_signatures(ledger: Ledger, diagnosis: Diagnosis) -> list[Any]:
    """Return the members of the header that nobody has any more, as far as they were kept."""
    packed = ledger.signatures(diagnosis.group_id)
    if packed is None or diagnosis.header is None:
        return []
    app = ledger.backend.app
    lost = set(diagnosis.missing) - set(diagnosis.evidence)
    kept = zip(unpack_data(app, packed), diagnosis.header, strict=False)
    return [maybe_signature(data, app=app) for data, ids in kept if set(leaf_ids([ids])) <= lost]


def _requeue(ledger: Ledger, diagnosis: Diagnosis, _: Action) -> bool:
    results = _results_of(ledger.backend.app, diagnosis.header or ())
    safety_net.send_unlock(ledger.backend, diagnosis.group_id, results, diagnosis.body, {})
    return True


def _results_of(app: Celery, header: Header) -> list[Any]:
    return [
        app.AsyncResult(item)
        if isinstance(item, str)
        else app.GroupResult(uuid(), _results_of(app, item))
        for item in header
    ]


def _recount(ledger: Ledger, diagnosis: Diagnosis, _: Action) -> bool:
    counting.catch_up(
        ledger,
        diagnosis.group_id,
        diagnosis.header or (),
        diagnosis.uncounted,
        diagnosis.body,
    )
    return True


def _forget(ledger: Ledger, diagnosis: Diagnosis, _: Action) -> bool:
    # A worker without the patches has ended it, or one that died as it was about to note that.
    ledger.close(diagnosis.group_id, End(ENDED))
    return True


_ACTIONS: dict[str, Callable[[Ledger, Diagnosis, Action], bool]] = {
    "fire": _end,
    "abort": _end,
    "recount": _recount,
    "resend": _resend,
    "requeue": _requeue,
    "fail-members": _end,
    "forget": _forget,
}
