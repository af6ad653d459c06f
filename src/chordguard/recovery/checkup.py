"""Check one chord, repair it as far as the evidence supports it, and say when to check again."""

from __future__ import annotations

import time
from typing import Any

from .. import settings
from ..ledger.model import Ledger
from ..lifecycle.settlement import Settlement
from ..upstream.signatures import waiting_for
from .evidence import examine
from .kinds import READY, RUNNING, SIZE_MISSING, SLOWEST, Diagnosis
from .repair import Action, actions_for, carry_out_all

__all__ = ("checkup", "is_known")


def checkup(
    ledger: Ledger,
    found: Diagnosis,
    *,
    may_repair: bool = True,
    settlement: Settlement | None = None,
    pace: float | None = None,
) -> float | None:
    """Repair a chord as far as its diagnosis supports it.

    Arguments:
        ledger: Where it is counted.
        found: Its diagnosis.
        may_repair: Whether it is a chord of this app.
        settlement: Why the chord is to end now, unless a worker is just ending it.
        pace: Seconds after which the caller checks again if all is well; None: the longer nothing
            has happened, the later.

    Returns:
        The seconds until somebody should check it again; None: it has ended.
    """
    if found.record is not None and found.record.header is None and found.header is not None:
        # The producer could not write the members down.
        ledger.set_header(found.group_id, found.header)
    actions = actions_for(found) if may_repair else []
    if not actions and settlement and found.body is not None and not _is_claimed(found):
        actions = [Action("abort", found.group_id, str(settlement), settlement=settlement)]
    if actions:
        carry_out_all(ledger, found, actions)
        found = examine(ledger, found.group_id, header=found.header, body=found.body)
    return _seconds_until_next(ledger, found, pace)


def is_known(app: Any, found: Diagnosis) -> bool:
    """Tell whether `app` has a task of the chord's body."""
    leaves = waiting_for(found.body) if found.body is not None else ()
    return any(leaf.get("task") in app.tasks for leaf in leaves)


def _is_claimed(found: Diagnosis) -> bool:
    return found.record is not None and found.record.claimed_until > time.time()


def _seconds_until_next(
    ledger: Ledger, found: Diagnosis, pace: float | None = None
) -> float | None:
    """Return the seconds until a chord should be checked again; None: it has ended."""
    if found.record is None:
        return None
    app = ledger.backend.app
    shortest = settings.interval(app)
    if _is_claimed(found):
        # It may be given back before it ends.
        return min(max(shortest, 1.0), max(0.0, found.record.claimed_until - time.time()))
    if found.is_damaged:
        shortest *= 2
    elif found.kind not in (RUNNING, SIZE_MISSING, READY):
        return shortest
    seconds = min(max(shortest, found.idle), max(shortest, SLOWEST)) if pace is None else pace
    if found.timeout is not None and not found.is_overdue:
        seconds = min(seconds, found.timeout - found.idle)
    return max(seconds, min(1.0, shortest))
