"""The tables of the SQL ledger, and the statements on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import states
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from .checked import MOST_AHEAD, Reader
from .model import Record

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "DIALECTS",
    "Tables",
    "insert_into",
    "probes_of",
)

#: The databases on which chords are counted, as SQLAlchemy names them.
DIALECTS = ("mariadb", "mysql", "postgresql", "sqlite")

#: How an insert passes over a row that is there already, by dialect.
_INSERT_PREFIX = {"mysql": "IGNORE", "mariadb": "IGNORE", "sqlite": "OR IGNORE"}

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
        self.probes = (*probes_of(self.chord, "due"), *probes_of(self.member))
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
        until: dict[str, Any] = dict.fromkeys(("claimed_until", "due"), sa.bindparam("until"))
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
            dialect: insert_into(self.member, dialect).values(
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

    def count_failed(self, task: Any) -> Any:
        """Return the statement that counts the failed members of chords, by chord.

        `task` are the columns of Celery's table of results.
        """
        member = self.member.c
        return (
            sa.select(member.chord_id, sa.func.count())
            .where(
                member.chord_id.in_(sa.bindparam("chords", expanding=True)),
                member.task_id == task.task_id,
                task.status.in_(sorted(states.PROPAGATE_STATES)),
            )
            .group_by(member.chord_id)
        )

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


def probes_of(table: Any, *updated: str) -> Iterator[tuple[str, Any]]:
    """Yield each right that a table needs, with a statement that needs it and changes nothing."""
    nothing = sa.select(*(sa.null() for _ in table.columns)).where(sa.false())
    names = [column.name for column in table.columns]
    yield f"SELECT {table.fullname}", sa.select(*table.columns).where(sa.false())
    yield f"INSERT {table.fullname}", table.insert().from_select(names, nothing)
    if updated:
        values = dict.fromkeys(updated)
        yield f"UPDATE {table.fullname}", table.update().where(sa.false()).values(values)
    yield f"DELETE {table.fullname}", table.delete().where(sa.false())


@cache
def insert_into(table: sa.Table, dialect: str) -> Any:
    """Return the statement that inserts a row unless it is there."""
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return table.insert().prefix_with(_INSERT_PREFIX[dialect])


def record_of_row(row: tuple[Any, ...]) -> tuple[Record, bool]:
    """Return what a row that `read_chords` selects says, and whether it says since when."""
    group_id, size, returned, created, progressed, claimed_until, packed_header, body = row
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
    is_dated = since is not None
    since = now if since is None else since
    record = Record(
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
    return record, is_dated
