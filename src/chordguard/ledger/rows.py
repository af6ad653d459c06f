"""A row of the chords' table, with what its counters counted, read as a record."""

from __future__ import annotations

import time
from typing import Any

from .checked import Reader
from .model import Record

__all__ = ("record_of_row",)


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
