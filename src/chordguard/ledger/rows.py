"""A ledger whose chords are rows of tables, in SQL and in Django: how they are read."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..errors import OUTSIDE
from ..upstream.results import chunks
from .checked import Reader, in_a_line
from .members import LedgerOfMembers
from .model import Record
from .packing import Header
from .tallies import Tally

__all__ = ("LedgerOfRows", "record_of_row")


class LedgerOfRows(LedgerOfMembers):
    """A ledger whose live chords, and those that have ended, are rows of tables."""

    #: For how many ids one statement tells how far chords are; it names each four times.
    tallies_at_once = 1000

    @property
    @abstractmethod
    def unreachable(self) -> tuple[type[Exception], ...]:
        """What is raised where the database cannot be read."""

    @abstractmethod
    def rows_of(self, group_ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        """Return the rows of live chords, as `record_of_row` takes them."""

    @abstractmethod
    def note_progress(self, group_id: str, since: float) -> None:
        """Write since when (Unix time) a chord makes no progress: its row does not tell."""

    @abstractmethod
    def tally_rows(self, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        """Return the rows of chords by the ids of their headers, or of their bodies' results.

        Those of live chords and of those that ended, with what the counters of a live one add.
        """

    @abstractmethod
    def abandoned(self, before: float) -> Sequence[str]:
        """Return the chords on whose own row nothing was counted since then (Unix time)."""

    @abstractmethod
    def remove_orphans(self) -> None:
        """Remove members whose chord is gone: whoever closed it died before that."""

    def reopen(self, *_: Any) -> bool:
        return False  # without its row there is nothing that a part is counted on

    def set_header(self, group_id: str, header: Header) -> None:
        self.write_header(group_id, header, is_all=True)

    def add(self, group_id: str, header: Header) -> bool:
        return self.write_header(group_id, header, is_all=False)

    @abstractmethod
    def write_header(self, group_id: str, more: Header, *, is_all: bool) -> bool:
        """Join members to the header of a live chord; return False when there is none.

        `is_all`: whether they are all that were not known.
        """

    def read_all(self, group_ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in chunks(group_ids):
            for row in self._readable(chunk):
                record = row if isinstance(row, Record) else self._record(row)
                found[record.group_id] = record
        return found

    def _readable(self, group_ids: Sequence[str]) -> Iterator[tuple[Any, ...] | Record]:
        """Yield the rows of chords; for one that cannot be decoded a damaged record."""
        try:
            yield from self.rows_of(group_ids)
        except (*self.unreachable, *OUTSIDE):
            raise
        except Exception as exc:  # noqa: BLE001 - it is told
            if len(group_ids) == 1:
                now = time.time()
                damage = f"its row cannot be read: {in_a_line(exc)}"
                yield Record(group_ids[0], None, 0, now, now, 0.0, None, None, damage=damage)
                return
            for group_id in group_ids:
                yield from self._readable([group_id])

    def _record(self, row: tuple[Any, ...]) -> Record:
        record, is_dated = record_of_row(row)
        if not is_dated:
            self.note_progress(record.group_id, record.progressed)
        return record

    def progress(self, ids: Sequence[str]) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        asked = set(ids)
        for chunk in chunks(ids, self.tallies_at_once):
            for group_id, body_id, *told in self.tally_rows(chunk):
                tally = _tally(group_id, *told)
                for id_ in asked & {group_id, body_id}:
                    known = found.get(id_)
                    # A chord may have been started again under the same id.
                    if known is None or known.outcome is not None:
                        found[id_] = tally
        return found

    def abandon(self, group_id: str, *, is_known: bool) -> None:
        self.close(group_id)

    def forget_abandoned(
        self, before: float, is_kept: Callable[[Record], bool] = lambda _: False
    ) -> int:
        """Forget chords that nobody ends any more; return how many.

        Arguments:
            before: They had no progress since then (Unix time).
            is_kept: Tells of such a chord that it stays all the same.
        """
        records = self.read_all(self.abandoned(before)).values()
        abandoned = [r.group_id for r in records if r.progressed < before and not is_kept(r)]
        for group_id in abandoned:
            self.close(group_id)
        self.remove_orphans()
        return len(abandoned)


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
