"""The diagnoses that a chord may get, and the evidence behind one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ledger.model import Record
from ..ledger.packing import Header
from ..upstream.results import StoredResult

__all__ = (
    "BODY_DONE",
    "CLAIM_EXPIRED",
    "KINDS",
    "MEMBER_LOST",
    "PART_LOST",
    "POLLER_LOST",
    "READY",
    "RUNNING",
    "SIZE_MISSING",
    "UNKNOWN",
    "Diagnosis",
)


#: Members are being worked on, or wait for it; or the chord is just being ended.
RUNNING = "running"
#: All parts were counted, and nobody publishes the body.
READY = "ready-not-fired"
#: A member's result is stored, and its part was not counted.
PART_LOST = "part-lost"
#: A member is not done, and neither a worker nor a queue has it; or it took too long.
MEMBER_LOST = "member-lost"
#: Who ended the chord died before it was ended.
CLAIM_EXPIRED = "claim-expired"
#: The last member was never sent.
SIZE_MISSING = "size-missing"
#: SQL: no worker and no queue has `celery.chord_unlock`, which workers without the patches need.
POLLER_LOST = "poller-lost"
#: The body was published, the chord is still in the ledger.
BODY_DONE = "body-done"
#: The ledger does not know the chord, or evidence could not be collected.
UNKNOWN = "unknown"

KINDS = (
    RUNNING,
    READY,
    PART_LOST,
    MEMBER_LOST,
    CLAIM_EXPIRED,
    SIZE_MISSING,
    POLLER_LOST,
    BODY_DONE,
    UNKNOWN,
)

#: The longest time, in seconds, between two looks at a chord.
SLOWEST = 300.0


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a chord, and what is the matter with it.

    Attributes:
        group_id: The id of the chord's header.
        kind: One of :data:`KINDS`.
        reason: The evidence in a sentence.
        record: What the ledger says; None where it does not know the chord.
        header: The members' ids, nested as the header is; None where they are not known.
        body: The signature of the body; None where it is not known.
        idle: Seconds without progress.
        timeout: Seconds without progress after which the chord is settled; None: never.
        missing: The members that were neither counted nor have a result, where that was asked.
        uncounted: The results of members whose parts were not counted.
        body_ids: The ids of the results that the body gives.
        body_damage: What of the body cannot be read, in a sentence; it must not be published.
        evidence: Where members without a result were seen, by id.
    """

    group_id: str
    kind: str
    reason: str
    record: Record | None = None
    header: Header | None = None
    body: Any = None
    idle: float = 0.0
    timeout: float | None = None
    missing: tuple[str, ...] = ()
    uncounted: tuple[StoredResult, ...] = ()
    body_ids: tuple[str, ...] = ()
    body_damage: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Tell whether something is the matter with it for certain."""
        return self.kind not in (RUNNING, UNKNOWN)

    @property
    def is_damaged(self) -> bool:
        """Tell whether what the ledger keeps of it cannot be read, and nothing else is known."""
        return self.kind == UNKNOWN and self.record is not None and self.record.damage is not None

    @property
    def is_overdue(self) -> bool:
        """Tell whether there was no progress for longer than the chord's timeout."""
        return self.timeout is not None and self.idle >= self.timeout

    def __str__(self) -> str:
        return f"{self.group_id}: {self.kind} ({self.reason})"
