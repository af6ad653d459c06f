"""What a ledger says of a chord, whatever keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ("CLAIM_SECONDS", "Claim", "Header", "Part", "Record", "leaf_ids", "pack", "unpack")

#: The ids of a header's members in header order; a nested list for a member that is a
#: group of results (a chain that ends in a group).
Header = Sequence[Any]

#: Seconds for which the one who ends a chord keeps others from doing so.
CLAIM_SECONDS = 60.0


@dataclass(frozen=True)
class Part:
    """A member that is done.

    ``payload`` is its result, encoded, where the result backend does not store it.
    """

    task_id: str
    payload: bytes | None = None


@dataclass(frozen=True)
class Record:
    """A live chord.

    Attributes:
        size: How many members it has; None until all of a generator's are known.
        returned: How many of them are done, each counted once.
        progressed: When the last one was counted, or the chord started (Unix time).
        claimed_until: Until when somebody ends the chord (Unix time); 0: nobody does.
    """

    size: int | None
    returned: int
    progressed: float
    claimed_until: float


@dataclass(frozen=True)
class Claim:
    """The right to end a chord, for :data:`CLAIM_SECONDS`.

    Attributes:
        group_id: The chord.
        token: By which the ledger knows who has it.
        header: The members' ids; empty where those of a generator never became known.
    """

    group_id: str
    token: str
    header: Header


def leaf_ids(header: Header) -> Iterator[str]:
    """Yield the id of each member, in header order."""
    for item in header:
        if isinstance(item, str):
            yield item
        else:
            yield from leaf_ids(item)


def pack(header: Header) -> str:
    """Return `header` as text."""
    return json.dumps(header, separators=(",", ":"))


def unpack(text: str | None) -> list[Any]:
    """Return the header that `pack` made `text` of."""
    header: list[Any] = json.loads(text) if text else []
    return header
