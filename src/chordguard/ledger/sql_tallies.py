"""How far chords are, as their rows tell: by one statement for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from .database import LedgerDatabase
from .model import Ledger
from .rows import tell_of_rows
from .tallies import Tally

__all__ = ("SqlTallies",)

#: For how many ids one statement asks; it names each four times.
CHUNK = 1000


class SqlTallies(LedgerDatabase, Ledger):
    """Tells how far chords are, live ones and those that have ended."""

    def progress(self, ids: Sequence[str]) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        for start in range(0, len(ids), CHUNK):
            values = {"ids": ids[start : start + CHUNK]}
            tell_of_rows(found, ids, self._select(self.tables.endings.read, values))
        return found
