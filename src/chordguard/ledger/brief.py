"""How far many chords are on Redis, read as fast as can be: see lua/overview.lua."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .checked import Reader
from .model import Record

__all__ = ("BRIEF_FIELDS", "brief_records")

#: What is read of a chord's record, which has the last one for certain.
BRIEF_FIELDS = ("size", "created", "progressed", "claimed_until", "failed", "lifetime")


def brief_records(group_ids: Sequence[str], told: bytes | str) -> Iterator[Record]:
    """Yield the records of chords without header and body; those that have none are left out.

    Arguments:
        group_ids: The chords.
        told: What the script says of them.
    """
    text = told.decode(errors="replace") if isinstance(told, bytes) else told
    now = time.time()
    for group_id, (fields, returned, added) in zip(group_ids, json.loads(text), strict=True):
        if fields and fields[-1] is False:
            continue
        # There may be thousands: each is read at once, and looked at closely if that fails.
        try:
            size, created, progressed, claimed_until, failed, _ = fields
            yield Record(
                group_id,
                int(size) + int(added or 0) if size else None,
                int(returned),
                _time(created),
                _time(progressed or created),
                _time(claimed_until or 0),
                None,
                None,
                int(failed or 0),
            )
        except (TypeError, ValueError, OverflowError):
            yield _damaged_record(now, group_id, fields, returned, added)


def _time(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < 1e11:
        raise ValueError(seconds)
    return seconds


def _damaged_record(now: float, group_id: str, fields: Any, returned: Any, added: Any) -> Record:
    reader = Reader(now, None if fields else "its record cannot be read")
    size, created, progressed, claimed_until, failed, _ = fields or (False,) * len(BRIEF_FIELDS)
    size = reader.number("size", size)
    more = reader.number("number of added members (.t)", added) or 0
    started = reader.moment("created", created)
    since = reader.moment("progressed", progressed) or started or now
    return Record(
        group_id,
        None if size is None else size + more,
        reader.number("number of parts (.j)", returned) or 0,
        since if started is None else started,
        since,
        reader.moment("claimed_until", claimed_until) or 0.0,
        None,
        None,
        failed=reader.number("failed", failed) or 0,
        damage=reader.damage,
    )
