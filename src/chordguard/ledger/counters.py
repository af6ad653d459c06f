"""Which members of a large chord are counted together, so that not all of them wait for one row.

A row that counts is locked until its commit has been flushed: one row lets a chord get on by one
member a flush, however many workers there are. The members of a large chord are spread over
counters by the hash of their ids, so that each counter knows how many it has to expect.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from .tables import insert_into

if TYPE_CHECKING:
    from .tables import Tables

__all__ = ("expect_more", "how_many", "known", "note", "number_of", "spread")

#: With fewer members a chord is counted on its own row.
LARGE = 128

#: With how many members of a chord a counter is added, and how many counters there are at most.
MEMBERS_FOR_EACH = 16
MOST = 256


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


def spread(
    tables: Tables,
    connection: Any,
    group_id: str,
    task_ids: Collection[str],
    done: Iterable[str] = (),
) -> int:
    """Insert the counters of a chord, if it is large.

    Arguments:
        tables: Those of the ledger.
        connection: In a transaction, or one that commits each statement.
        group_id: The chord.
        task_ids: Its members, each once.
        done: Those of them that were counted on the chord's row so far.

    Returns:
        How many there are; 0: none, the chord is counted on its own row.
    """
    dialect = connection.dialect.name
    # SQLite has one writer at a time, whatever that writes to.
    counters = 0 if dialect == "sqlite" else how_many(len(task_ids))
    if counters:
        expected, returned = _by_number(task_ids, counters), _by_number(done, counters)
        now = time.time()
        rows = [
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
        connection.execute(insert_into(tables.counter, dialect), rows)
    return counters


def expect_more(
    tables: Tables, connection: Any, group_id: str, task_ids: Iterable[str], counters: int
) -> None:
    """Have so many counters of a chord expect more members; each id once."""
    for number, more in _by_number(task_ids, counters).items():
        values = {"chord": group_id, "counter": number, "more": more}
        connection.execute(tables.expect_more, values)


def _by_number(task_ids: Iterable[str], counters: int) -> Counter[int]:
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
