"""The tables of the SQL ledger, and the statements on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from .checked import MOST_AHEAD
from .endings import Endings, ended_table

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

#: What the tables are called, by the key with which an app gives one another name.
DEFAULT_NAMES = {
    "chord": "chordguard_chord",
    "chord_member": "chordguard_chord_member",
    "chord_counter": "chordguard_chord_counter",
    "chord_end": "chordguard_chord_end",
}

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
    """The tables of chords, of their members that are done, their counters and ends; statements.

    Arguments:
        names: Those of the tables, in that order.
        schemas: Theirs; None: the one that a connection has.
    """

    def __init__(self, names: Sequence[str], schemas: Sequence[str | None]) -> None:
        self.metadata = sa.MetaData()
        self.chord = sa.Table(
            names[0],
            self.metadata,
            sa.Column("id", sa.String(155), primary_key=True),
            sa.Column("body_id", sa.String(155)),
            sa.Column("size", sa.Integer),
            sa.Column("returned", sa.Integer, nullable=False),
            sa.Column("failed", sa.Integer, nullable=False),
            sa.Column("counters", sa.Integer, nullable=False),
            sa.Column("created", _UNIX_TIME, nullable=False),
            sa.Column("progressed", _UNIX_TIME, nullable=False),
            sa.Column("due", _UNIX_TIME, nullable=False),
            sa.Column("claimed_by", sa.String(36)),
            sa.Column("claimed_until", _UNIX_TIME, nullable=False),
            sa.Column("header", _LONG_TEXT),
            sa.Column("body", _LONG_BINARY),
            sa.Column("signatures", _LONG_BINARY),
            sa.Index(f"{names[0]}_due", "due"),
            sa.Index(f"{names[0]}_body", "body_id"),
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
        self.counter = sa.Table(
            names[2],
            self.metadata,
            sa.Column("chord_id", sa.String(155), primary_key=True),
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("expected", sa.Integer, nullable=False),
            sa.Column("returned", sa.Integer, nullable=False),
            sa.Column("failed", sa.Integer, nullable=False),
            sa.Column("progressed", _UNIX_TIME, nullable=False),
            schema=schemas[2],
        )
        self.ended = ended_table(names[3], schemas[3], self.metadata)
        #: What the ledger needs a right for, and a statement that needs it and changes nothing.
        self.probes = (
            *probes_of(self.chord, "due"),
            *probes_of(self.member),
            *probes_of(self.counter, "returned"),
            *probes_of(self.ended, "failed"),
        )
        self._write_chord(self.chord.c)
        self._write_member(self.member.c)
        self._write_counter(self.counter.c)
        self._write_count_in_one(self.chord.c, self.counter.c)
        self.endings = Endings(self)

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
        self.count = update.where(chord.counters == 0).ordered_values(
            (chord.claimed_by, sa.case((is_last, sa.bindparam("token")), else_=chord.claimed_by)),
            (chord.due, sa.case((is_last, sa.bindparam("until")), else_=chord.due)),
            (
                chord.claimed_until,
                sa.case((is_last, sa.bindparam("until")), else_=chord.claimed_until),
            ),
            (chord.progressed, sa.bindparam("now")),
            (chord.failed, chord.failed + sa.bindparam("failures")),
            (chord.returned, chord.returned + 1),
        )
        #: Whether the chord was claimed by the count, and its header if so.
        self.claimed = (
            sa.case((is_mine, 1), else_=0).label("is_mine"),
            sa.case((is_mine, chord.header)).label("header"),
        )
        self.read_claimed = sa.select(*self.claimed, chord.counters).where(_is_this(chord))
        until: dict[str, Any] = dict.fromkeys(("claimed_until", "due"), sa.bindparam("until"))
        self.claim = update.where(is_free | is_mine).values(
            claimed_by=sa.bindparam("token"), **until
        )
        self.renew = update.where(is_mine).values(**until)
        self.release = update.where(is_mine).values(
            claimed_by=None, claimed_until=0.0, due=sa.bindparam("now")
        )
        self.set_header = update.values(size=sa.bindparam("members"), header=sa.bindparam("text"))
        self.spread = update.values(counters=sa.bindparam("number"), returned=0)
        # It locks the row, so that nobody else changes the header.
        self.lock = update.where(is_free).values(progressed=sa.bindparam("now"))
        self.remove = self.chord.delete().where(_is_this(chord))
        self.remove_small = self.remove.where(chord.counters == 0)
        self.find_all = sa.select(chord.id)
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

    def _write_counter(self, counter: Any) -> None:
        of_chord = counter.chord_id == sa.bindparam("chord")
        self.this_counter = of_chord & (counter.number == sa.bindparam("counter"))
        update = self.counter.update().where(self.this_counter)
        self.count_on_counter = update.ordered_values(
            (counter.progressed, sa.bindparam("now")),
            (counter.failed, counter.failed + sa.bindparam("failures")),
            (counter.returned, counter.returned + 1),
        )
        self.is_full = (counter.returned >= counter.expected).label("is_full")
        self.read_full = sa.select(self.is_full).where(self.this_counter)
        self.find_unfilled = (
            sa.select(counter.number).where(of_chord, counter.returned < counter.expected).limit(1)
        )
        self.expect_more = update.values(expected=counter.expected + sa.bindparam("more"))
        self.remove_counters = self.counter.delete().where(of_chord)
        chord = self.chord.c
        among: Any = sa.bindparam("chords", expanding=True)
        counted = sa.select(
            counter.chord_id,
            sa.func.sum(counter.returned).label("returned"),
            sa.func.sum(counter.failed).label("failed"),
            sa.func.max(counter.progressed).label("progressed"),
        ).group_by(counter.chord_id)
        #: What :func:`.rows.record_of_row` reads.
        self.read_chords = self._read_with(
            counted.where(counter.chord_id.in_(among)).subquery(), chord.header, chord.body
        ).where(chord.id.in_(among))
        #: The same of all chords, without header and body.
        self.read_overview = self._read_with(counted.subquery(), sa.null(), sa.null())

    def _read_with(self, counted: Any, header: Any, body: Any) -> Any:
        chord = self.chord.c
        return sa.select(
            *(chord.id, chord.size, chord.created, chord.claimed_until, header, body),
            *(chord.returned, chord.failed, chord.progressed),
            *(counted.c.returned, counted.c.failed, counted.c.progressed),
        ).select_from(self.chord.outerjoin(counted, counted.c.chord_id == chord.id))

    def _write_count_in_one(self, chord: Any, counter: Any) -> None:
        """PostgreSQL: insert and count by one statement; no member without what counts it."""
        # Locked, a row is still the one that counts: its chord is neither spread nor closed.
        here = sa.select(chord.id).where(_is_this(chord), chord.counters == 0)
        new = self._insert_new(here.with_for_update().cte("here").c.id)
        counted = self.count.where(sa.exists().select_from(new))
        self.count_in_one = counted.returning(*self.claimed)

        new = self._insert_new(sa.select(counter.chord_id).where(self.this_counter).subquery().c[0])
        counted = self.count_on_counter.where(sa.exists().select_from(new))
        self.count_on_counter_in_one = counted.returning(self.is_full)
        self.remove_orphan = self.remove_member.where(
            ~sa.exists(sa.select(counter.chord_id).where(self.this_counter))
        )

    def _insert_new(self, group_id: Any) -> Any:
        """Return the CTE that inserts a member of the chord with that id, if it is new."""
        member = self.member.c
        payload = sa.bindparam("payload", type_=_LONG_BINARY)
        return (
            postgresql.insert(self.member)
            .from_select(
                [column.name for column in member],
                sa.select(group_id, sa.bindparam("task"), payload),
            )
            .on_conflict_do_nothing()
            .returning(member.task_id)
            .cte("new")
        )

    @staticmethod
    @cache
    def with_store(count: Any, store: Any) -> Any:
        """Return a statement that counts with the statement `store` as a part of it."""
        return count.add_cte(store.cte("stored"))

    def read_chord(self, *columns: Any) -> Any:
        """Return the statement that selects `columns` of one chord's row."""
        return sa.select(*columns).where(_is_this(self.chord.c))

    def ddl(self, dialect: str) -> list[str]:
        """Return the statements that create the tables in a database of :data:`DIALECTS`."""
        compiler = sa.create_mock_engine(f"{dialect}://", lambda *_: None).dialect
        tables = (self.chord, self.member, self.counter, self.ended)
        indexes = sorted(
            {*self.chord.indexes, *self.ended.indexes}, key=lambda index: str(index.name)
        )
        statements: list[Any] = [CreateTable(table) for table in tables]
        statements += [CreateIndex(index) for index in indexes]
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

        ``database_table_names`` and ``database_table_schemas`` may have the keys of
        :data:`DEFAULT_NAMES`. A schema that is not given is that of Celery's table of tasks.
        """
        names = (app and app.conf.get("database_table_names")) or {}
        schemas = (app and app.conf.get("database_table_schemas")) or {}
        schema = schemas.get("chord", schemas.get("task"))
        return _tables(
            tuple(names.get(key, name) for key, name in DEFAULT_NAMES.items()),
            tuple(schemas.get(key, schema) for key in DEFAULT_NAMES),
        )


_tables = cache(Tables)


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
