"""The ledger of a SQL result backend: two tables beside Celery's own, nothing polled.

A part is one transaction: store the member's result, insert the member (one that is there
already is no new part), count it in the chord's row. The UPDATE that counts also claims the
chord for whom its last part came from. On PostgreSQL all of it is one statement.

Locks. Members come before their chord's row, in every transaction that has both, so two of them
never wait for each other; the row, for which all parts of a chord queue, is held no longer than
the commit takes. A chord is removed in two transactions, its row first. A result's row is locked
by those only that store the same result, which PostgreSQL does last and the others first. There
is no foreign key, whose check would lock the chord's row first, and all conditions of what is
written are on a primary key, so that no scan locks rows: chords that are due or abandoned are
looked for without a lock, and changed one by one. The index of what is due is written when a
chord starts, is claimed or was looked at, not with each part.

Isolation. PostgreSQL: read committed, whatever the engine says, since under repeatable read two
parts could not both count. MySQL and MariaDB: the engine's own; under their repeatable read an
UPDATE sees the latest row, and only the removal of a chord's members locks gaps, in which a part
of another chord waits at most for that commit. SQLite: a transaction that writes begins with a
write, so it waits for its turn (the driver's busy timeout) and never upgrades a lock. What fails
nevertheless (deadlock, serialization, busy) is retried by the backend's own policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from celery import states
from kombu.utils.encoding import ensure_bytes
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from .. import backends, masking
from ..backends import StoredResult
from ..errors import OUTSIDE
from . import connections, model, rights
from .checked import MOST_AHEAD, ChordUnreadable, Reader, header_in, in_a_line
from .model import (
    Claim,
    Header,
    Ledger,
    Outstanding,
    Part,
    Record,
    leaf_ids,
    new_token,
    pack,
)

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("DIALECTS", "DatabaseLedger", "Tables")

logger = logging.getLogger("chordguard")

T = TypeVar("T")

#: The databases on which chords are counted, as SQLAlchemy names them.
DIALECTS = ("mariadb", "mysql", "postgresql", "sqlite")

#: What a warning begins with where chords cannot be counted.
POLLED = "Chords are polled, not counted, as in Celery alone"

#: How an insert passes over a row that is there already, by dialect.
_INSERT_PREFIX = {"mysql": "IGNORE", "mariadb": "IGNORE", "sqlite": "OR IGNORE"}

READ_COMMITTED = "READ COMMITTED"

#: The drivers of PostgreSQL that can be told to send no BEGIN.
DRIVERS_WITH_AUTOCOMMIT = ("psycopg", "psycopg2", "psycopg2cffi")

_LONG_TEXT = (
    sa.Text().with_variant(mysql.LONGTEXT(), "mysql").with_variant(mysql.LONGTEXT(), "mariadb")
)
_LONG_BINARY = (
    sa.LargeBinary()
    .with_variant(mysql.LONGBLOB(), "mysql")
    .with_variant(mysql.LONGBLOB(), "mariadb")
)
_UNIX_TIME = sa.Float(53)


class Tables:
    """The tables of the chords and of their members that are done, and the statements on them."""

    def __init__(self, names: tuple[str, str], schemas: tuple[str | None, str | None]) -> None:
        self.metadata = sa.MetaData()
        self.chord = sa.Table(
            names[0],
            self.metadata,
            sa.Column("id", sa.String(155), primary_key=True),
            sa.Column("size", sa.Integer),
            sa.Column("returned", sa.Integer, nullable=False),
            sa.Column("created", _UNIX_TIME, nullable=False),
            sa.Column("progressed", _UNIX_TIME, nullable=False),
            sa.Column("due", _UNIX_TIME, nullable=False),
            sa.Column("claimed_by", sa.String(36)),
            sa.Column("claimed_until", _UNIX_TIME, nullable=False),
            sa.Column("header", _LONG_TEXT),
            sa.Column("body", _LONG_BINARY),
            sa.Column("signatures", _LONG_BINARY),
            sa.Index(f"{names[0]}_due", "due"),
            schema=schemas[0],
        )
        self.member = sa.Table(
            names[1],
            self.metadata,
            sa.Column("chord_id", sa.String(155), primary_key=True),
            sa.Column("task_id", sa.String(155), primary_key=True),
            sa.Column("payload", _LONG_BINARY),
            schema=schemas[1],
        )
        #: What the ledger needs a right for, and a statement that needs it and changes nothing.
        self.probes = (*_probes(self.chord, "due"), *_probes(self.member))
        self._write_chord(self.chord.c)
        self._write_member(self.member.c)
        self._write_count_in_one(self.chord.c, self.member.c)

    def _write_chord(self, chord: Any) -> None:
        update = self.chord.update().where(_is_this(chord))
        is_mine = chord.claimed_by == sa.bindparam("token")
        # A claim until a time that makes no sense is none.
        is_free = sa.or_(
            chord.claimed_until < sa.bindparam("now"),
            chord.claimed_until > sa.bindparam("now") + MOST_AHEAD,
            chord.claimed_until.is_(None),
        )
        is_last = sa.and_(chord.size <= chord.returned + 1, is_free)
        # MySQL assigns from left to right and reads what it has assigned: whatever is read
        # comes before it is written.
        self.count = update.ordered_values(
            (chord.claimed_by, sa.case((is_last, sa.bindparam("token")), else_=chord.claimed_by)),
            (chord.due, sa.case((is_last, sa.bindparam("until")), else_=chord.due)),
            (
                chord.claimed_until,
                sa.case((is_last, sa.bindparam("until")), else_=chord.claimed_until),
            ),
            (chord.progressed, sa.bindparam("now")),
            (chord.returned, chord.returned + 1),
        )
        #: Whether the chord was claimed by the count, and its header if so.
        self.claimed = (
            sa.case((is_mine, 1), else_=0).label("is_mine"),
            sa.case((is_mine, chord.header)).label("header"),
        )
        self.read_claimed = sa.select(*self.claimed).where(_is_this(chord))
        until: dict[str, Any] = {
            "claimed_until": sa.bindparam("until"),
            "due": sa.bindparam("until"),
        }
        self.claim = update.where(is_free | is_mine).values(
            claimed_by=sa.bindparam("token"), **until
        )
        self.renew = update.where(is_mine).values(**until)
        self.release = update.where(is_mine).values(
            claimed_by=None, claimed_until=0.0, due=sa.bindparam("now")
        )
        self.set_header = update.values(size=sa.bindparam("members"), header=sa.bindparam("text"))
        # It locks the row, so that nobody else changes the header.
        self.lock = update.where(is_free).values(progressed=sa.bindparam("now"))
        self.remove = self.chord.delete().where(_is_this(chord))
        self.find_all = sa.select(chord.id)
        columns = (chord.id, chord.size, chord.returned, chord.created, chord.progressed)
        self.read_chords = sa.select(*columns, chord.claimed_until, chord.header, chord.body).where(
            chord.id.in_(sa.bindparam("chords", expanding=True))
        )
        self.find_abandoned = sa.select(chord.id).where(chord.progressed < sa.bindparam("before"))
        self.find_claimed = sa.select(chord.id, chord.claimed_by).where(
            chord.due <= sa.bindparam("latest"), chord.claimed_until > sa.bindparam("now")
        )
        self.find_due = (
            sa.select(chord.id, chord.due)
            .where(chord.due <= sa.bindparam("now"))
            .order_by(chord.due)
            .limit(sa.bindparam("most"))
        )
        self.note = update.values(progressed=sa.bindparam("now"))
        self.look_again = update.values(due=sa.bindparam("until"))
        self.take_due = self.look_again.where(chord.due == sa.bindparam("seen"))

    def _write_member(self, member: Any) -> None:
        is_member = member.chord_id == sa.bindparam("chord")
        self.insert_member = {
            dialect: _insert(self.member, dialect).values(
                chord_id=sa.bindparam("chord"),
                task_id=sa.bindparam("task"),
                payload=sa.bindparam("payload"),
            )
            for dialect in _INSERT_PREFIX
        }
        self.remove_member = self.member.delete().where(
            is_member, member.task_id == sa.bindparam("task")
        )
        self.remove_members = self.member.delete().where(is_member)
        is_live = sa.exists().where(self.chord.c.id == member.chord_id)
        self.find_orphans = sa.select(member.chord_id).where(~is_live).distinct()
        self.read_members = sa.select(member.task_id).where(is_member)
        self.read_plain_members = sa.select(member.task_id).where(
            is_member & member.payload.is_(None)
        )
        self.read_members_of = sa.select(member.chord_id, member.task_id).where(
            member.chord_id.in_(sa.bindparam("chords", expanding=True))
        )
        self.read_payloads = sa.select(member.task_id, member.payload).where(
            is_member & member.payload.is_not(None)
        )

    def _write_count_in_one(self, chord: Any, member: Any) -> None:
        """PostgreSQL: insert and count by one statement; no member without its chord."""
        row = sa.select(chord.id, sa.bindparam("task"), sa.bindparam("payload", type_=_LONG_BINARY))
        new = (
            postgresql.insert(self.member)
            .from_select([column.name for column in member], row.where(_is_this(chord)))
            .on_conflict_do_nothing()
            .returning(member.task_id)
            .cte("new")
        )
        self.remove_orphan = self.remove_member.where(
            ~sa.exists(sa.select(chord.id).where(_is_this(chord)))
        )
        self.count_in_one = self.count.where(sa.exists().select_from(new)).returning(*self.claimed)

    @cache  # noqa: B019 - tables live as long as the process
    def store_and_count(self, store: Any) -> Any:
        """Return `count_in_one` with the statement `store` as a part of it."""
        return self.count_in_one.add_cte(store.cte("stored"))

    def read_chord(self, *columns: Any) -> Any:
        """Return the statement that selects `columns` of one chord's row."""
        return sa.select(*columns).where(_is_this(self.chord.c))

    def ddl(self, dialect: str) -> list[str]:
        """Return the statements that create the tables in a database of :data:`DIALECTS`."""
        compiler = sa.create_mock_engine(f"{dialect}://", lambda *_: None).dialect
        statements: list[Any] = [CreateTable(table) for table in (self.chord, self.member)]
        statements += [CreateIndex(index) for index in self.chord.indexes]
        return [
            "\n".join(
                line.rstrip().replace("\t", "    ")
                for line in str(statement.compile(dialect=compiler)).strip().splitlines()
            )
            for statement in statements
        ]

    @classmethod
    def of(cls, app: Celery | None) -> Tables:
        """Return the tables with the names and schemas that `app` asks for; None: the defaults.

        ``database_table_names`` and ``database_table_schemas`` may have the keys ``chord`` and
        ``chord_member``. A schema that is not given is that of Celery's table of tasks.
        """
        names = (app and app.conf.get("database_table_names")) or {}
        schemas = (app and app.conf.get("database_table_schemas")) or {}
        return _tables(
            names.get("chord", "chordguard_chord"),
            names.get("chord_member", "chordguard_chord_member"),
            schemas.get("chord", schemas.get("task")),
            schemas.get("chord_member", schemas.get("chord", schemas.get("task"))),
        )


@cache
def _tables(chord: str, member: str, chord_schema: str | None, member_schema: str | None) -> Tables:
    return Tables((chord, member), (chord_schema, member_schema))


def _is_this(chord: Any) -> Any:
    return chord.id == sa.bindparam("chord")


def _verb(exc: Any) -> str:
    """Return what a refused statement begins with."""
    return next(iter(str(exc.statement or "").split()), "")


def _reason(exc: Any) -> str:
    """Return the first line of what the driver says."""
    return next(iter(str(exc.orig).splitlines()), "")


def _joined(header: Header, added: Header) -> Header:
    """Join the members; what is there already came with an attempt whose answer was lost."""
    return [*header, *(member for member in added if member not in header)]


def _probes(table: Any, *updated: str) -> Iterator[tuple[str, Any]]:
    nothing = sa.select(*(sa.null() for _ in table.columns)).where(sa.false())
    names = [column.name for column in table.columns]
    yield f"SELECT {table.fullname}", sa.select(*table.columns).where(sa.false())
    yield f"INSERT {table.fullname}", table.insert().from_select(names, nothing)
    if updated:
        values = dict.fromkeys(updated)
        yield f"UPDATE {table.fullname}", table.update().where(sa.false()).values(values)
    yield f"DELETE {table.fullname}", table.delete().where(sa.false())


@cache
def _insert(table: sa.Table, dialect: str) -> Any:
    """Return the statement that inserts a row unless it is there."""
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return table.insert().prefix_with(_INSERT_PREFIX[dialect])


#: Whether the tables are there, by (URL, tables); what is not listed was not looked at yet.
_are_there: dict[tuple[str, Tables], bool] = {}


@contextmanager
def _autocommit(connection: Any) -> Iterator[None]:
    """Have the driver send no BEGIN and COMMIT.

    SQLAlchemy's isolation level AUTOCOMMIT would have psycopg2 set the session's level twice for
    each use, and for each ping of the pool.
    """
    pooled = connection.connection
    # Before SQLAlchemy 1.4.24 it had another name.
    driver = getattr(pooled, "dbapi_connection", None) or pooled.connection
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False


class DatabaseLedger(Ledger):
    """The live chords of one SQL result backend.

    Arguments:
        backend: Celery's `DatabaseBackend`, whose engine and sessions are used.

    Its methods raise what SQLAlchemy raises, after the backend's own retries.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.tables = Tables.of(backend.app)
        self._key = (backend.url, self.tables)
        #: The session manager of its own, if it has one.
        self._own: tuple[Any, ...] = ()

    def keep_engine(self) -> None:
        if self.backend.url.startswith("sqlite"):
            return  # it connects at no cost, and a file that is open does not survive a fork
        manager = connections.new_manager(self.backend)
        self._own = (manager,)
        if not getattr(self.backend, "thread_safe", False):
            # One of this thread alone: what else it stores and reads goes the same way.
            open_session = self.backend.ResultSession
            self.backend.ResultSession = lambda own=manager: open_session(own)

    def is_usable(self) -> bool:
        """Tell whether the tables are there; the first time, create those that are not."""
        if self._key not in _are_there:
            _are_there[self._key] = backends.with_retries(self.backend, self._create_tables)
        return _are_there[self._key]

    def is_there(self) -> bool:
        with self._session() as session:
            return self._has_tables(session.get_bind())

    def may_count(self) -> bool:
        return rights.may_count(self._key, self.refused, POLLED)

    def refuse(self, exc: BaseException) -> bool:
        if not backends.is_refusal(exc):
            return False
        refused = {_verb(exc): _reason(exc)}
        with suppress(Exception):
            refused = self.refused() or refused
        rights.stop_counting(self._key, refused, POLLED)
        rights.tell(exc)
        return True

    def refused(self) -> dict[str, str]:
        probes = [probe for _, probe in self.tables.probes]
        if self._why_refused(*probes) is None:
            return {}
        found = {what: self._why_refused(probe) for what, probe in self.tables.probes}
        return {what: why for what, why in found.items() if why is not None}

    def _why_refused(self, *statements: Any) -> str | None:
        try:
            with self._transaction() as connection:
                for statement in statements:
                    connection.execute(statement)
        except DatabaseError as exc:
            if not backends.is_refusal(exc):
                raise
            return _reason(exc)
        return None

    def open(
        self,
        group_id: str,
        header: Header | None,
        body: bytes | None,
        due: float,
        timeout: float | None,
        signatures: bytes | None = None,
    ) -> None:
        now = time.time()
        values = {
            "id": group_id,
            "size": None if header is None else len(set(leaf_ids(header))),
            "returned": 0,
            "created": now,
            "progressed": now,
            "due": due,
            "claimed_until": 0.0,
            "header": None if header is None else pack(header),
            "body": body,
            "signatures": signatures,
        }

        def open_chord() -> None:
            with self._transaction(is_one_statement=True) as connection:
                connection.execute(_insert(self.tables.chord, connection.dialect.name), values)

        self._retried(open_chord)

    def reopen(self, *_: Any) -> bool:
        return False  # without its row there is nothing that a part is counted on

    def set_header(self, group_id: str, header: Header) -> None:
        self._write_header(group_id, lambda _, added: (_joined(header, added), True))

    def add(self, group_id: str, header: Header) -> bool:
        return self._write_header(
            group_id, lambda size, old: (_joined(old, header), size is not None)
        )

    def _write_header(
        self, group_id: str, change: Callable[[int | None, Header], tuple[Header, bool]]
    ) -> bool:
        """Change the header of a live chord; return False when there is none.

        `change` gets its size and header, and returns the header and whether that is all of it.
        """
        lock = {"chord": group_id, "now": time.time()}

        def write_header() -> bool:
            tables = self.tables
            with self._transaction() as connection:
                if not connection.execute(tables.lock, lock).rowcount:
                    return False
                read = tables.read_chord(tables.chord.c.size, tables.chord.c.header)
                size, text = connection.execute(read, {"chord": group_id}).one()
                header, is_whole = change(size, header_in(text) or [])
                values = {
                    "chord": group_id,
                    "members": len(set(leaf_ids(header))) if is_whole else None,
                    "text": pack(header),
                }
                connection.execute(tables.set_header, values)
            return True

        return self._retried(write_header)

    def part_of(self, request: Any, state: str, result: Any, *, is_ignored: bool) -> Part:
        if not is_ignored:
            return Part(request.id)
        payload = self.backend.encode([state, self.backend.encode_result(result, state)])
        return Part(request.id, ensure_bytes(payload))  # type: ignore[no-untyped-call]

    def part_from(self, result: StoredResult, index: int) -> Part:
        return Part(result.task_id)

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
        """
        token, now = token or new_token(), time.time()
        values = {
            "chord": group_id,
            "task": part.task_id,
            "payload": part.payload,
            "token": token,
            "now": now,
            "until": now + model.CLAIM_SECONDS,
        }
        with self._transaction(is_one_statement=True) as connection:
            if connection.dialect.name == "postgresql":
                counted = self._count_in_one(connection, values, store)
            else:
                counted = self._count(connection, values, store)
        if counted is None or not counted.is_mine:
            return None
        return Claim(group_id, token, header_in(counted.header))

    def _count_in_one(self, connection: Any, values: dict[str, Any], store: Any) -> Any:
        statement = self.tables.count_in_one
        if store is not None:
            statement, values = self.tables.store_and_count(store[0]), {**values, **store[1]}
        counted = connection.execute(statement, values).one_or_none()
        if counted is None:
            # Counted before, or its chord was closed just after it had been seen.
            member = {key: values[key] for key in ("chord", "task")}
            connection.execute(self.tables.remove_orphan, member)
            counted = self._read_claimed(connection, values)
        return counted

    def _read_claimed(self, connection: Any, values: dict[str, Any]) -> Any:
        claimed = {key: values[key] for key in ("chord", "token")}
        return connection.execute(self.tables.read_claimed, claimed).one_or_none()

    def _count(self, connection: Any, values: dict[str, Any], store: Any) -> Any:
        tables = self.tables
        if store is not None:
            connection.execute(*store)
        member = {key: values[key] for key in ("chord", "task")}
        insert = tables.insert_member[connection.dialect.name]
        if not connection.execute(insert, {**member, "payload": values["payload"]}).rowcount:
            return self._read_claimed(connection, values)
        claim = {key: values[key] for key in ("chord", "token", "now", "until")}
        if not connection.execute(tables.count, claim).rowcount:
            # A chord that is not here, or has ended.
            connection.execute(tables.remove_member, member)
            return None
        return self._read_claimed(connection, values)

    def group_ids(self) -> list[str]:
        return [group_id for (group_id,) in self._select(self.tables.find_all, {})]

    def read_all(self, group_ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in backends.chunks(group_ids):
            for row in self._read_rows(chunk):
                record = row if isinstance(row, Record) else self._record(*row)
                found[record.group_id] = record
        return found

    def _read_rows(self, group_ids: Sequence[str]) -> Iterator[tuple[Any, ...] | Record]:
        """Yield the rows of chords; for one that the driver cannot decode a damaged record."""
        try:
            yield from self._select(self.tables.read_chords, {"chords": group_ids})
        except (SQLAlchemyError, *OUTSIDE):
            raise
        except Exception as exc:  # noqa: BLE001 - it is told
            if len(group_ids) == 1:
                now = time.time()
                damage = f"its row cannot be read: {in_a_line(exc)}"
                yield Record(group_ids[0], None, 0, now, now, 0.0, None, None, damage=damage)
                return
            for group_id in group_ids:
                yield from self._read_rows([group_id])

    def _record(
        self,
        group_id: str,
        size: Any,
        returned: Any,
        created: Any,
        progressed: Any,
        claimed_until: Any,
        packed_header: Any,
        body: Any,
    ) -> Record:
        now = time.time()
        reader = Reader(now)
        header = reader.header(packed_header)
        size = reader.number("size", size)
        counted = reader.number("returned", returned)
        if counted is None:
            reader.spoilt("its returned is missing, expected a number of members")
        started = reader.moment("created", created)
        since = reader.moment("progressed", progressed)
        if since is None:
            since = started
        if since is None:
            since = now
            self._write(self.tables.note, group_id, now=now)
        return Record(
            group_id,
            size,
            counted or 0,
            since if started is None else started,
            since,
            reader.moment("claimed_until", claimed_until) or 0.0,
            header,
            reader.body(body),
            damage=reader.damage,
        )

    def signatures(self, group_id: str) -> bytes | None:
        rows = self._read(self.tables.read_chord(self.tables.chord.c.signatures), group_id)
        return rows[0][0] if rows else None

    def outstanding(self, headers: Mapping[str, Header]) -> dict[str, Outstanding]:
        counted: dict[str, set[str]] = {group_id: set() for group_id in headers}
        for chunk in backends.chunks(list(headers)):
            for group_id, task_id in self._select(self.tables.read_members_of, {"chords": chunk}):
                counted[group_id].add(task_id)
        rest = {
            group_id: list(dict.fromkeys(i for i in leaf_ids(header) if i not in counted[group_id]))
            for group_id, header in headers.items()
        }
        ready = backends.ready_states(self.backend, [id_ for ids in rest.values() for id_ in ids])
        return {
            group_id: Outstanding(
                tuple(id_ for id_ in ids if id_ not in ready),
                tuple(StoredResult(id_, ready[id_], None) for id_ in ids if id_ in ready),
            )
            for group_id, ids in rest.items()
        }

    def vanished(self, group_id: str, header: Header) -> list[str]:
        # What a part brought along is kept beside it.
        rows = self._read(self.tables.read_plain_members, group_id)
        counted = {task_id for (task_id,) in rows}
        ids = [task_id for task_id in leaf_ids(header) if task_id in counted]
        ready = backends.ready_states(self.backend, ids)
        return [task_id for task_id in dict.fromkeys(ids) if task_id not in ready]

    def has(self, group_id: str) -> bool:
        """Tell whether a chord is live here; cheaper than to read it."""
        return bool(self._read(self.tables.read_chord(self.tables.chord.c.id), group_id))

    def failed(self, group_ids: Sequence[str]) -> dict[str, int]:
        task, member = self.backend.task_cls.__table__.c, self.tables.member.c
        statement = (
            sa.select(member.chord_id, sa.func.count())
            .where(
                member.chord_id.in_(sa.bindparam("chords", expanding=True)),
                member.task_id == task.task_id,
                task.status.in_(sorted(states.PROPAGATE_STATES)),
            )
            .group_by(member.chord_id)
        )
        found = dict.fromkeys(group_ids, 0)
        for chunk in backends.chunks(group_ids):
            found.update(self._select(statement, {"chords": chunk}))
        return found

    def collect(self, claim: Claim) -> tuple[Header, dict[str, StoredResult]]:
        header = claim.header
        if header is None:
            raise ChordUnreadable("its members are not known: its header is missing or damaged")
        ids = list(leaf_ids(header))
        results = backends.read_results(self.backend, ids)
        ready = {id_: result for id_, result in results.items() if result.is_ready}
        if len(ready) < len(set(ids)):
            for task_id, payload in self.payloads(claim.group_id).items():
                ready[task_id] = self._brought(task_id, payload)
        return header, ready

    def _brought(self, task_id: str, payload: Any) -> StoredResult:
        """Return the result that a part brought along."""
        try:
            state, value = self.backend.decode(payload)
            return StoredResult(task_id, str(state), value)
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever was stored
            return backends.unreadable(task_id, in_a_line(exc))

    def counted(self, group_id: str) -> set[str]:
        """Return the ids of the members that were counted."""
        return {task_id for (task_id,) in self._read(self.tables.read_members, group_id)}

    def payloads(self, group_id: str) -> dict[str, bytes]:
        """Return what parts brought along, by task id (see :class:`Part`)."""
        return dict(self._read(self.tables.read_payloads, group_id))

    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        token = token or new_token()
        now = time.time()
        values = {"chord": group_id, "token": token, "now": now, "until": now + model.CLAIM_SECONDS}

        def claim_chord() -> Claim | None:
            with self._transaction() as connection:
                if not connection.execute(self.tables.claim, values).rowcount:
                    return None
                read = self.tables.read_chord(self.tables.chord.c.header)
                packed = connection.execute(read, {"chord": group_id}).scalar()
                return Claim(group_id, token, header_in(packed))

        return self._retried(claim_chord)

    def renew(self, claim: Claim) -> bool:
        until = time.time() + model.CLAIM_SECONDS
        return self._write(self.tables.renew, claim.group_id, token=claim.token, until=until)

    def release(self, claim: Claim) -> None:
        self._write(self.tables.release, claim.group_id, token=claim.token, now=time.time())

    def expire(self, is_gone: Callable[[str], bool]) -> int:
        now = time.time()
        # A chord that is claimed is due when the claim ends, at the latest.
        times = {"now": now, "latest": now + model.CLAIM_SECONDS + 1}
        claimed = self._select(self.tables.find_claimed, times)
        # A row that is damaged may be claimed by nobody.
        gone = [(group_id, token) for group_id, token in claimed if token and is_gone(token)]
        # Renewed until now, which has just passed.
        return sum(
            self._write(self.tables.renew, group_id, token=token, until=now)
            for group_id, token in gone
        )

    def close(self, group_id: str, *, has_failed: bool = False) -> None:
        # Two transactions, the row first: a part that is counted meanwhile is seen by the second,
        # one that comes later finds no row and takes its member back.
        self._write(self.tables.remove, group_id)
        self._write(self.tables.remove_members, group_id)

    def abandon(self, group_id: str, *, is_known: bool) -> None:
        self.close(group_id)

    def live_members(self) -> Any:
        """Return the statement that selects the ids of all members that live chords counted."""
        return sa.select(self.tables.member.c.task_id)

    def forget_abandoned(
        self, before: float, is_kept: Callable[[Record], bool] = lambda _: False
    ) -> int:
        """Forget chords that nobody ends any more; return how many.

        Arguments:
            before: They had no progress since then (Unix time).
            is_kept: Tells of such a chord that it stays all the same.
        """
        _are_there.pop(self._key, None)  # it is done once a day: look at the tables again
        if not self.is_usable():
            return 0

        old = self._select(self.tables.find_abandoned, {"before": before})
        records = self.read_all([group_id for (group_id,) in old]).values()
        abandoned = [record.group_id for record in records if not is_kept(record)]
        for group_id in abandoned:
            self.close(group_id)
        # Whoever closed these died before the members were removed.
        for (group_id,) in self._select(self.tables.find_orphans, {}):
            self._write(self.tables.remove_members, group_id)
        return len(abandoned)

    def take_due(self, now: float, until: float, limit: int) -> list[str]:
        due = self._select(self.tables.find_due, {"now": now, "most": limit})
        take = self.tables.take_due
        return [id_ for id_, seen in due if self._write(take, id_, seen=seen, until=until)]

    def look_again(self, group_id: str, due: float) -> str | None:
        self._write(self.tables.look_again, group_id, until=due)
        return None

    def _read(self, statement: Any, group_id: str) -> list[tuple[Any, ...]]:
        return self._select(statement, {"chord": group_id})

    def _select(self, statement: Any, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        def read_ledger() -> list[tuple[Any, ...]]:
            with self._session() as session:
                return [tuple(row) for row in session.execute(statement, values)]

        return self._retried(read_ledger)

    def _write(self, statement: Any, group_id: str, **values: Any) -> bool:
        """Change one chord's row; tell whether there was one to change."""

        def write_ledger() -> bool:
            with self._transaction(is_one_statement=True) as connection:
                return bool(connection.execute(statement, {"chord": group_id, **values}).rowcount)

        return self._retried(write_ledger)

    def _retried(self, operation: Callable[[], T]) -> T:
        try:
            return backends.with_retries(self.backend, operation)
        except DatabaseError as exc:
            if not self.refuse(exc):
                # Perhaps somebody has dropped the tables: the next one looks.
                _are_there.pop(self._key, None)
            raise

    @contextmanager
    def _session(self) -> Iterator[Any]:
        lent = nullcontext(self._own) if self._own else connections.lent(self.backend)
        with lent as manager:
            session = self.backend.ResultSession(*manager)
            with backends.database_module().session_cleanup(session):
                yield session

    @contextmanager
    def _transaction(self, is_one_statement: bool = False) -> Iterator[Any]:
        """Yield a connection at the right isolation level, commit at the end of the block.

        On PostgreSQL one statement is a transaction of its own: no round trips to begin and end.
        """
        with self._session() as session, session.get_bind().connect() as connection:
            dialect = connection.dialect
            mode: AbstractContextManager[None] = nullcontext()
            if dialect.name == "postgresql":
                if dialect.default_isolation_level != READ_COMMITTED:
                    connection = connection.execution_options(isolation_level=READ_COMMITTED)
                elif is_one_statement and dialect.driver in DRIVERS_WITH_AUTOCOMMIT:
                    mode = _autocommit(connection)
            with mode, connection.begin():
                yield connection

    def _create_tables(self) -> bool:
        with self._session() as session:
            engine = session.get_bind()
        if engine.dialect.name not in DIALECTS:
            self._complain(f"the database {engine.dialect.name} is not supported")
            return False
        # Asked first, a database that is away is not asked again and again.
        if self._has_tables(engine):
            return True
        error = backends.create_tables(self.tables.metadata, engine)
        if error is None or self._has_tables(engine):
            return True
        self._complain(
            f"the tables {self.tables.chord.fullname} and {self.tables.member.fullname} are not "
            f"there and cannot be created ({masking.masked(str(error.orig))}): have them created "
            f"with the output of `python -m chordguard ddl --dialect {engine.dialect.name}` and "
            "restart"
        )
        return False

    def _has_tables(self, engine: Any) -> bool:
        member = self.tables.member
        return bool(sa.inspect(engine).has_table(member.name, schema=member.schema))

    def _complain(self, why: str) -> None:
        logger.warning("%s: %s", POLLED, why)
