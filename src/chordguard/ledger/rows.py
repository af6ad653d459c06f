"""Rows of the chords' tables, with what counters counted, read as records and tallies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from .checked import Reader
from .model import Record
from .tallies import Tally

__all__ = ("record_of_row", "tell_of_rows")


def record_of_row(row: tuple[Any, ...]) -> tuple[Record, bool]:
    """Return what a row says, and whether it says since when there was no progress."""
    group_id, size, created, claimed_until, packed_header, body, *counted = row
    returned, failed, progressed, more_returned, more_failed, last_counted = counted
    now = time.time()
    reader = Reader(now)
    header = reader.header(packed_header)
    size = reader.number("size", size)
    known = reader.number("returned", returned)
    if known is None:
        reader.spoilt("its returned is missing, expected a number of members")
    started = reader.moment("created", created)
    moments = (reader.moment("progressed", value) for value in (progressed, last_counted))
    since = max((moment for moment in moments if moment is not None), default=started)
    is_dated = since is not None
    since = now if since is None else since
    record = Record(
        group_id,
        size,
        (known or 0) + int(more_returned or 0),
        since if started is None else started,
        since,
        reader.moment("claimed_until", claimed_until) or 0.0,
        header,
        reader.body(body),
        failed=(reader.number("failed", failed) or 0) + int(more_failed or 0),
        damage=reader.damage,
    )
    return record, is_dated


def tell_of_rows(found: dict[str, Tally], ids: Sequence[str], rows: Iterable[Any]) -> None:
    """Add to `found` how far chords are, by those of `ids` that each goes by.

    `rows`: of live chords and of those that ended, with what the counters of a live one add.
    """
    asked = set(ids)
    for group_id, body_id, *told in rows:
        tally = _tally(group_id, *told)
        for id_ in asked & {group_id, body_id}:
            known = found.get(id_)
            # A chord may have been started again under the same id.
            if known is None or known.outcome is not None:
                found[id_] = tally


def _tally(
    group_id: str,
    size: Any,
    returned: Any,
    failed: Any,
    created: Any,
    progressed: Any,
    outcome: str | None,
    *counted: Any,
) -> Tally:
    more_returned, more_failed, last_counted = counted
    now = time.time()
    reader = Reader(now)
    started = reader.moment("created", created)
    moments = (reader.moment("progressed", value) for value in (progressed, last_counted))
    since = max((moment for moment in moments if moment is not None), default=started)
    since = now if since is None else since
    return Tally(
        group_id,
        reader.number("size", size),
        (reader.number("returned", returned) or 0) + int(more_returned or 0),
        (reader.number("failed", failed) or 0) + int(more_failed or 0),
        since if started is None else started,
        since,
        outcome,
    )
