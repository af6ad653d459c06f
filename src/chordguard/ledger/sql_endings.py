"""How chords leave the SQL ledger, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from .database import LedgerDatabase
from .model import Record
from .rows import LedgerOfRows
from .tallies import End

__all__ = ("SqlEndings",)


class SqlEndings(LedgerDatabase, LedgerOfRows):
    """Removes chords that have ended, and those that nobody ends any more."""

    def close(self, group_id: str, end: End | None = None) -> None:
        # What counts goes first, each in a transaction: a part that is counted meanwhile is seen by
        # the last one, one that comes later finds nothing to count on and takes its member back.
        if not self._remove(group_id, end, is_small=True):
            self._remove(group_id, end, is_small=False)
            self._write(self.tables.remove_counters, group_id)
        self._write(self.tables.remove_members, group_id)

    def _remove(self, group_id: str, end: End | None, *, is_small: bool) -> bool:
        """Remove a chord's row, and keep how it ended; False where there is none to remove."""
        tables = self.tables
        if end is None:
            return self._write(tables.remove_small if is_small else tables.remove, group_id)
        values = {
            "chord": group_id,
            "how": end.outcome,
            "failures": end.failed,
            "now": time.time(),
        }

        def remove_chord() -> bool:
            with self._transaction(is_one_statement=True) as connection:
                statements = tables.endings.keep(connection.dialect.name, is_small=is_small)
                for statement in statements:
                    count = connection.execute(statement, values).rowcount
            return bool(count)

        return self._retried(remove_chord)

    def live_members(self) -> Any:
        """Return the statement that selects the ids of all members that live chords counted."""
        return sa.select(self.tables.member.c.task_id)

    def forget_abandoned(
        self, before: float, is_kept: Callable[[Record], bool] = lambda _: False
    ) -> int:
        self._look_at_tables_again()  # this is done once a day
        return super().forget_abandoned(before, is_kept) if self.is_usable() else 0

    def abandoned(self, before: float) -> list[str]:
        old = self._select(self.tables.find_abandoned, {"before": before})
        return [group_id for (group_id,) in old]

    def remove_orphans(self) -> None:
        for (group_id,) in self._select(self.tables.find_orphans, {}):
            self._write(self.tables.remove_members, group_id)

    def forget_ended(self, before: float) -> None:
        """Forget how chords ended that did so before then (Unix time)."""

        def forget() -> None:
            with self._transaction(is_one_statement=True) as connection:
                connection.execute(self.tables.endings.forget, {"before": before})

        self._retried(forget)
