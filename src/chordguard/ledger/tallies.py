"""How far a chord is, whatever keeps its ledger, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Record

__all__ = ("ENDED", "End", "Tally")

#: The outcome of a chord that ended elsewhere, as by a worker without the patches.
ENDED = "ended"


@dataclass(frozen=True)
class End:
    """How a chord ended.

    Attributes:
        outcome: One of :data:`chordguard.signals.OUTCOMES`, or :data:`ENDED`.
        failed: How many members failed or were lost; None: as many as were counted.
    """

    outcome: str
    failed: int | None = None


@dataclass(frozen=True)
class Tally:
    """How far a chord is.

    Attributes:
        group_id: The id of its header.
        size: How many members it has; None where that is not known, or not yet.
        returned: How many of them are done, each counted once.
        failed: How many of those that are done failed, were revoked, or are lost.
        created: When it started (Unix time).
        progressed: When the last member was counted, it started or it ended (Unix time).
        outcome: How it ended, as :class:`End` has it; None: it is live.
    """

    group_id: str
    size: int | None
    returned: int
    failed: int
    created: float
    progressed: float
    outcome: str | None = None

    @classmethod
    def of(cls, record: Record) -> Tally:
        """Return how far the chord of a record is."""
        return cls(
            record.group_id,
            record.size,
            record.returned,
            record.failed,
            record.created,
            record.progressed,
            ENDED if record.is_over else None,
        )
