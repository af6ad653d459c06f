"""How far chords are, as their rows tell: by one statement for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .checked import Reader
from .database import LedgerDatabase
from .model import Ledger
from .tallies import Tally

__all__ = ("SqlTallies",)

#: For how many ids one statement asks; it names each four times.
CHUNK = 1000


class SqlTallies(LedgerDatabase, Ledger):
    """Tells how far chords are, live ones and those that have ended."""

    def progress(self, ids: Sequence[str]) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        asked = set(ids)
        for start in range(0, len(ids), CHUNK):
            values = {"ids": ids[start : start + CHUNK]}
            for group_id, body_id, *told in self._select(self.tables.endings.read, values):
                tally = _tally(group_id, *told)
                for id_ in asked & {group_id, body_id}:
                    known = found.get(id_)
                    # A chord may have been started again under the same id.
                    if known is None or known.outcome is not None:
                        found[id_] = tally
        return found


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
