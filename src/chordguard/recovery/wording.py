"""The words and units in which chords are told, the same in commands and on the page."""

from __future__ import annotations

from .kinds import (
    BODY_DONE,
    CLAIM_EXPIRED,
    MEMBER_LOST,
    PART_LOST,
    POLLER_LOST,
    READY,
    RUNNING,
    SIZE_MISSING,
    UNKNOWN,
)

__all__ = ("TITLES", "WORDS", "duration", "plural")

#: What each diagnosis means, for people.
TITLES = {
    RUNNING: "On its way",
    READY: "Its body was not published",
    PART_LOST: "A result was not counted",
    MEMBER_LOST: "A member is lost",
    CLAIM_EXPIRED: "The worker that was ending it died",
    SIZE_MISSING: "Its producer has not sent all of it",
    POLLER_LOST: "Its safety net is gone",
    BODY_DONE: "It has ended, and is still in the ledger",
    UNKNOWN: "Cannot tell",
}

#: What each action does, for people.
WORDS = {
    "fire": "publish its body",
    "recount": "count the members whose results are stored",
    "fail-members": "settle it: members without a result count as failed",
    "resend": "send its lost members again",
    "requeue": "send its celery.chord_unlock again",
    "abort": "revoke its members and settle it",
    "forget": "remove it from the ledger",
}

#: Units of a duration and their seconds.
UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that people would use; "-" for None."""
    if seconds is None:
        return "-"
    for unit, length in UNITS:
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
