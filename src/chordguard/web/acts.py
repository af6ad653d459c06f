"""What is done on the page: a chord is repaired, settled or revoked. Each act is logged."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import masking
from ..ledger.access import required_ledger
from ..recovery import requested
from ..recovery.repair import Action
from ..recovery.survey import Chord, survey
from ..recovery.wording import WORDS
from .text import clean, clock

if TYPE_CHECKING:
    from celery import Celery

    from .watch import Watch

__all__ = ("ACTS", "Act", "Acts")

logger = logging.getLogger("chordguard")

#: So many acts are shown.
KEPT = 100

#: What can be asked for.
ACTS = ("repair", "settle", "revoke")


@dataclass(frozen=True)
class Act:
    """Something that was asked for on the page.

    Attributes:
        at: When (Unix time).
        who: From where.
        group_id: The chord.
        name: One of :data:`ACTS`.
        is_done: Whether it was done.
        told: What was done, or why not.
    """

    at: float
    who: str
    group_id: str
    name: str
    is_done: bool
    told: str

    @property
    def clock(self) -> str:
        """When, as the time of day."""
        return clock(self.at)


class Acts:
    """Does what is asked for, one thing at a time.

    Arguments:
        app: A Celery app with the patches.
        watch: Remembers the chords that are acted on, which may end before it looks at them.
    """

    def __init__(self, app: Celery, watch: Watch) -> None:
        self._app = app
        self._watch = watch
        self._lock = threading.Lock()
        self._done: deque[Act] = deque(maxlen=KEPT)

    def of(self, group_id: str | None = None) -> list[Act]:
        """Return the last acts, those on one chord if it is named; the last one first."""
        return [act for act in reversed(self._done) if group_id in (None, act.group_id)]

    def do(self, name: str, group_id: str, shown: str, who: str) -> Act:
        """Repair, settle or revoke a chord.

        Arguments:
            name: One of :data:`ACTS`.
            group_id: The chord.
            shown: What a repair would have done when it was asked for; another one is not done.
            who: From where it is asked for.
        """
        with self._lock:
            try:
                is_done, told = self._do(name, group_id, shown)
            except Exception as exc:  # noqa: BLE001 - it is told
                is_done, told = False, f"not done: {masking.told(exc)}"
            act = Act(time.time(), who, group_id, name, is_done, clean(told))
            self._done.append(act)
        logger.warning("Asked on the page by %s: %s of chord %r: %s", who, name, group_id, act.told)
        return act

    def _do(self, name: str, group_id: str, shown: str) -> tuple[bool, str]:
        # Revoked or settled is what somebody wants to be, whatever workers say of it.
        is_asking = name == "repair"
        (chord,) = survey(self._app, [group_id], is_asking=is_asking).chords
        if chord.found.record is None:
            return False, "not done: the ledger does not know it any more, it may have ended"
        self._watch.remember(chord.found)
        if name == "repair":
            return self._repair(chord, shown)
        if name == "revoke":
            requested.revoke_members(self._app, [chord.found], is_terminating=True)
        why = f"it is {'revoked' if name == 'revoke' else 'settled'} on the page"
        done = requested.settle(required_ledger(self._app), chord.found, why)
        what = "revoked its members and settled it" if name == "revoke" else "settled it"
        return bool(done.is_done), what if done.is_done else f"not done: {done.reason}"

    def _repair(self, chord: Chord, shown: str) -> tuple[bool, str]:
        ledger = required_ledger(self._app)
        actions = requested.plans(ledger, chord, is_resending=False)
        if not actions:
            return False, f"nothing to repair: it is {chord.found.kind} now"
        if [action.name for action in actions] != [shown]:
            would = ", ".join(WORDS[action.name] for action in actions)
            return False, f"not done, it has changed: a repair would now {would}. Look again"
        done = [requested.carry_out_if_same(ledger, chord.found, action) for action in actions]
        return all(action.is_done for action in done), "; ".join(map(_told, done))


def _told(action: Action) -> str:
    if action.is_done:
        return f"done: {WORDS[action.name]}, for {action.reason}"
    return f"not done: {action.reason}"
