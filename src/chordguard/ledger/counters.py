"""Which members of a large chord are counted together, so that not all of them wait for one row.

A row that counts is locked until its commit has been flushed: one row lets a chord get on by one
member a flush, however many workers there are. The members of a large chord are spread over
counters by the hash of their ids, so that each counter knows how many it has to expect.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

__all__ = ("Counted", "by_number", "how_many", "known", "note", "number_of", "rows")

#: With fewer members a chord is counted on its own row.
LARGE = 128

#: With how many members of a chord a counter is added, and how many counters there are at most.
MEMBERS_FOR_EACH = 16
MOST = 256


@dataclass(frozen=True)
class Counted:
    """What a part did to its chord.

    Attributes:
        is_claimed: Whether it was the last one, and claimed the chord.
        header: The members' ids then, packed.
        is_full: Whether it may have been the last one, as far as its counter tells.
        is_known: Whether there is such a chord.
    """

    is_claimed: bool = False
    header: Any = None
    is_full: bool = False
    is_known: bool = True


def how_many(size: int) -> int:
    """Return how many counters a chord of `size` members has, a power of two; 0: none."""
    if size < LARGE:
        return 0
    return 1 << (min(size // MEMBERS_FOR_EACH, MOST).bit_length() - 1)


def number_of(task_id: str, counters: int) -> int:
    """Return the number of the counter, out of so many, on which a member is counted.

    Numbers go from `counters` up to twice as many, so that each tells how many there are: who is
    mistaken in that finds no counter.
    """
    return counters + crc32(task_id.encode()) % counters


def rows(
    group_id: str, task_ids: Collection[str], counters: int, done: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of the counters of a chord.

    Arguments:
        group_id: The chord.
        task_ids: Its members, each once.
        counters: Over how many counters it is spread.
        done: Those of them that were counted on the chord's row so far.
    """
    expected, returned = by_number(task_ids, counters), by_number(done, counters)
    now = time.time()
    return [
        {
            "chord_id": group_id,
            "number": number,
            "expected": expected[number],
            "returned": returned[number],
            "failed": 0,
            "progressed": now,
        }
        for number in range(counters, 2 * counters)
    ]


def by_number(task_ids: Iterable[str], counters: int) -> Counter[int]:
    """Return how many of some members each counter counts."""
    return Counter(number_of(task_id, counters) for task_id in task_ids)


#: How many counters chords have, as far as this process has seen: it spares a look at their rows.
_known: dict[str, int] = {}

#: After how many chords that starts anew.
MOST_KNOWN = 1000


def known(group_id: str) -> int:
    """Return how many counters a chord has; 0: none, or that was not seen."""
    return _known.get(group_id, 0)


def note(group_id: str, counters: int) -> None:
    """Remember how many counters a chord has."""
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[group_id] = counters
