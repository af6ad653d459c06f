"""The ledger of a SQL result backend: four tables beside Celery's own, nothing polled.

A part is one transaction: store the member's result, insert the member (one that is there
already is no new part), count it. That is done in the chord's row, by an UPDATE that also claims
the chord for whom its last part came from; or, in a large chord, in the row of one of its
counters (:mod:`.counters`): whoever fills one looks, when that is committed, whether all are full,
and claims the chord then. On PostgreSQL to store and to count is one statement.

Locks. The row that counts is held until the commit has been flushed, which is why a large chord
has several; no part locks both its chord's row and a counter. PostgreSQL locks the chord's row
before the member is inserted, the others insert first; all transactions on one database do the
same, so two of them never wait for each other. A chord is removed in one transaction for each
table: its row, its counters, its members. Members that are told later, or added, lock the row and
then the counters. A result's row is locked by those only that store the same result, which
PostgreSQL does last and the others first. There is no foreign key, whose check would lock the
chord's row, and all conditions of what is written are on a primary key, so that no scan locks
rows: chords that are due or abandoned are looked for without a lock, and changed one by one. The
index of what is due is written when a chord starts, is claimed or was looked at, not with each
part. What is kept of a chord that has ended is inserted in the transaction that removes its row.

Isolation. PostgreSQL: read committed, whatever the engine says, since under repeatable read two
parts could not both count. MySQL and MariaDB: the engine's own; under their repeatable read an
UPDATE sees the latest row, and only the removal of a chord's members locks gaps, in which a part
of another chord waits at most for that commit. SQLite: a transaction that writes begins with a
write, so it waits for its turn (the driver's busy timeout) and never upgrades a lock. What fails
nevertheless (deadlock, serialization, busy) is retried by the backend's own policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ..upstream.results import chunks
from . import claims, counters
from .checked import header_in
from .claims import new_token
from .counters import Counted
from .model import ChordUnknown, Claim, Part, Record
from .packing import Header, joined, leaf_ids, pack
from .parts import Elsewhere, count_part, expect_more, spread
from .rows import record_of_row
from .sql_endings import SqlEndings
from .tables import insert_into

__all__ = ("DatabaseLedger",)


class DatabaseLedger(SqlEndings):
    """The live chords in one SQL database, which is that of the results or the ledger's own.

    Arguments:
        backend: Celery's `DatabaseBackend`, whose engine and sessions are used.
        results: The result backend of the app, where it is another one.

    Its methods raise what SQLAlchemy raises, after the backend's own retries.
    """

    @property
    def has_safety_net(self) -> bool:
        return not self.is_own

    def open(
        self,
        group_id: str,
        header: Header | None,
        body: bytes | None,
        due: float,
        timeout: float | None,
        signatures: bytes | None = None,
        body_id: str | None = None,
    ) -> None:
        now = time.time()
        ids = set(leaf_ids(header or ()))
        values = {
            "id": group_id,
            "body_id": body_id,
            "size": None if header is None else len(ids),
            "returned": 0,
            "failed": 0,
            "created": now,
            "progressed": now,
            "due": due,
            "claimed_until": 0.0,
            "header": None if header is None else pack(header),
            "body": body,
            "signatures": signatures,
        }

        def open_chord() -> None:
            is_large = counters.how_many(len(ids)) > 0
            with self._transaction(is_one_statement=not is_large) as connection:
                dialect = connection.dialect.name
                number = spread(self.tables, connection, group_id, ids)
                insert = insert_into(self.tables.chord, dialect)
                connection.execute(insert, {**values, "counters": number})

        self._retried(open_chord)

    def write_header(self, group_id: str, more: Header, *, is_all: bool) -> bool:
        now = time.time()

        def write() -> bool:
            tables, chord = self.tables, self.tables.chord.c
            this = {"chord": group_id}
            with self._transaction() as connection:
                if not connection.execute(tables.lock, {**this, "now": now}).rowcount:
                    return False
                read = tables.read_chord(chord.size, chord.counters, chord.header)
                size, number, text = connection.execute(read, this).one()
                known = header_in(text) or []
                # What members that run have added may come before the others are known.
                header = joined(more, known) if is_all else joined(known, more)
                ids = set(leaf_ids(header))
                if number:
                    added = ids - set(leaf_ids(known))
                    expect_more(tables, connection, group_id, added, number)
                elif size is None and is_all:
                    done = connection.execute(tables.read_members, this).scalars()
                    number = spread(tables, connection, group_id, ids, list(done))
                    if number:
                        connection.execute(tables.spread, {**this, "number": number})
                members = len(ids) if is_all or size is not None else None
                values = {**this, "members": members, "text": pack(header)}
                connection.execute(tables.set_header, values)
            return True

        return self._retried(write)

    def count(self, group_id: str, part: Part, token: str | None = None) -> Claim | None:
        token = token or new_token()
        return self._retried(lambda: self.store_and_count(group_id, part, None, token))

    def store_and_count(
        self,
        group_id: str,
        part: Part,
        store: tuple[Any, dict[str, Any]] | None,
        token: str | None = None,
    ) -> Claim | None:
        """Count a part in the transaction that stores its result; not retried here.

        Arguments:
            group_id: The chord.
            part: The member.
            store: The statement that stores its result, and the statement's values.
            token: That of the claim, which may have been given to an earlier attempt.

        Returns:
            As `count`.

        Raises:
            ChordUnknown: As `count`.
        """
        token, now = token or new_token(), time.time()
        values = {
            "chord": group_id,
            "task": part.task_id,
            "payload": part.payload,
            "failures": int(part.has_failed),
            "token": token,
            "now": now,
            "until": now + claims.CLAIM_SECONDS,
        }
        counted = self._count(values, store)
        if self.is_own and not counted.is_known:
            raise ChordUnknown(group_id)
        if counted.is_full:
            return self._claim_if_whole(values)
        return Claim(group_id, token, header_in(counted.header)) if counted.is_claimed else None

    def _count(self, values: dict[str, Any], store: Any) -> Counted:
        group_id = values["chord"]
        # First where it should be, then where it is said to be.
        for _ in range(3):
            try:
                with self._transaction(is_one_statement=True) as connection:
                    known = counters.known(group_id)
                    return count_part(self.tables, connection, values, store, known)
            except Elsewhere as found:
                counters.note(group_id, found.counters)
        return Counted(is_known=False)  # somebody has taken its counters away

    def _claim_if_whole(self, values: dict[str, Any]) -> Claim | None:
        """Claim a chord that is spread if all its counters are full.

        The part that filled the last one is committed: whoever comes last sees all the others.
        """
        group_id = values["chord"]
        with self._transaction(is_one_statement=True) as connection:
            unfilled = connection.execute(self.tables.find_unfilled, {"chord": group_id})
            if unfilled.first() is not None:
                return None
            return self._claim_on(connection, values)

    def group_ids(self) -> list[str]:
        return [group_id for (group_id,) in self._select(self.tables.find_all, {})]

    @property
    def unreachable(self) -> tuple[type[Exception], ...]:
        return (SQLAlchemyError,)

    def rows_of(self, group_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        return self._select(self.tables.read_chords, {"chords": group_ids})

    def overview(self) -> list[Record]:
        return [record_of_row(row)[0] for row in self._select(self.tables.read_overview, {})]

    def note_progress(self, group_id: str, since: float) -> None:
        self._write(self.tables.note, group_id, now=since)

    def tally_rows(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        return self._select(self.tables.endings.read, {"ids": ids})

    def signatures(self, group_id: str) -> bytes | None:
        rows = self._read(self.tables.read_chord(self.tables.chord.c.signatures), group_id)
        return rows[0][0] if rows else None

    def counted_in(self, group_ids: Sequence[str]) -> dict[str, set[str]]:
        counted: dict[str, set[str]] = {group_id: set() for group_id in group_ids}
        for chunk in chunks(group_ids):
            for group_id, task_id in self._select(self.tables.read_members_of, {"chords": chunk}):
                counted[group_id].add(task_id)
        return counted

    def plain_members(self, group_id: str) -> set[str]:
        return {task_id for (task_id,) in self._read(self.tables.read_plain_members, group_id)}

    def has(self, group_id: str) -> bool:
        """Tell whether a chord is live here; cheaper than to read it."""
        return bool(self._read(self.tables.read_chord(self.tables.chord.c.id), group_id))

    def counted(self, group_id: str) -> set[str]:
        """Return the ids of the members that were counted."""
        return {task_id for (task_id,) in self._read(self.tables.read_members, group_id)}

    def payloads(self, group_id: str) -> dict[str, bytes]:
        return dict(self._read(self.tables.read_payloads, group_id))

    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        token = token or new_token()
        now = time.time()
        values = {
            "chord": group_id,
            "token": token,
            "now": now,
            "until": now + claims.CLAIM_SECONDS,
        }

        def claim_chord() -> Claim | None:
            with self._transaction() as connection:
                return self._claim_on(connection, values)

        return self._retried(claim_chord)

    def _claim_on(self, connection: Any, values: dict[str, Any]) -> Claim | None:
        names = ("chord", "token", "now", "until")
        if not connection.execute(self.tables.claim, {n: values[n] for n in names}).rowcount:
            return None
        group_id = values["chord"]
        read = self.tables.read_chord(self.tables.chord.c.header)
        packed = connection.execute(read, {"chord": group_id}).scalar()
        return Claim(group_id, values["token"], header_in(packed))

    def renew(self, claim: Claim) -> bool:
        until = time.time() + claims.CLAIM_SECONDS
        return self._write(self.tables.renew, claim.group_id, token=claim.token, until=until)

    def release(self, claim: Claim) -> None:
        self._write(self.tables.release, claim.group_id, token=claim.token, now=time.time())

    def expire(self, is_gone: Callable[[str], bool]) -> int:
        now = time.time()
        # A chord that is claimed is due when the claim ends, at the latest.
        times = {"now": now, "latest": now + claims.CLAIM_SECONDS + 1}
        claimed = self._select(self.tables.find_claimed, times)
        # A row that is damaged may be claimed by nobody.
        gone = [(group_id, token) for group_id, token in claimed if token and is_gone(token)]
        # Renewed until now, which has just passed.
        return sum(
            self._write(self.tables.renew, group_id, token=token, until=now)
            for group_id, token in gone
        )

    def take_due(self, now: float, until: float, limit: int) -> list[str]:
        due = self._select(self.tables.find_due, {"now": now, "most": limit})
        take = self.tables.take_due
        return [id_ for id_, seen in due if self._write(take, id_, seen=seen, until=until)]

    def look_again(self, group_id: str, due: float) -> str | None:
        self._write(self.tables.look_again, group_id, until=due)
        return None
