"""The table of chords that have ended, and the statements that tell how far chords are.

It holds what a :class:`.tallies.Tally` tells, until ``celery.backend_cleanup`` finds that the
results of the chord have expired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

if TYPE_CHECKING:
    from .tables import Tables

__all__ = ("Endings", "ended_table")

_UNIX_TIME = sa.Float(53)

#: The columns of a chord's row that are kept, or that what is kept is made of.
_KEPT = ("id", "body_id", "size", "returned", "failed", "counters", "created")


def ended_table(name: str, schema: str | None, metadata: sa.MetaData) -> sa.Table:
    """Return the table of chords that have ended."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.String(155), primary_key=True),
        sa.Column("body_id", sa.String(155)),
        sa.Column("size", sa.Integer),
        sa.Column("returned", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("created", _UNIX_TIME, nullable=False),
        sa.Column("ended", _UNIX_TIME, nullable=False),
        sa.Index(f"{name}_body", "body_id"),
        schema=schema,
    )


class Endings:
    """The statements on chords that have ended, or are just ending.

    Arguments:
        tables: Those of the ledger.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        ended = tables.ended
        self.forget = ended.delete().where(ended.c.ended < sa.bindparam("before"))
        self.read = self._read(tables.chord.c, ended.c)
        self._keep = {
            (dialect, is_small): self._removing(dialect, is_small)
            for dialect in ("mariadb", "mysql", "postgresql", "sqlite")
            for is_small in (True, False)
        }

    def _read(self, chord: Any, ended: Any) -> Any:
        """Select the rows of chords by the ids of their headers, or of their bodies' results."""
        ids: Any = sa.bindparam("ids", expanding=True)
        live = (
            sa.select(
                *(chord.id, chord.body_id, chord.size, chord.returned, chord.failed),
                *(chord.created, chord.progressed, sa.null().label("outcome")),
                *(self._counted(chord, name) for name in ("returned", "failed", "progressed")),
            ).where(column.in_(ids))
            for column in (chord.id, chord.body_id)
        )
        gone = (
            sa.select(
                *(ended.id, ended.body_id, ended.size, ended.returned, ended.failed),
                *(ended.created, ended.ended, ended.outcome, sa.null(), sa.null(), sa.null()),
            ).where(column.in_(ids))
            for column in (ended.id, ended.body_id)
        )
        # Each of them has an index; for an OR some databases use none.
        return sa.union_all(*live, *gone)

    def _counted(self, chord: Any, name: str) -> Any:
        """Return what the counters of a chord, if it has some, add to a column; NULL: nothing."""
        counter = self._tables.counter.c
        combine = sa.func.max if name == "progressed" else sa.func.sum
        counted = sa.select(combine(counter[name])).where(counter.chord_id == chord.id)
        return sa.case((chord.counters > 0, counted.scalar_subquery()))

    def keep(self, dialect: str, *, is_small: bool) -> tuple[Any, ...]:
        """Return the statements that remove a chord's row and keep how the chord ended.

        Arguments:
            dialect: The database, as SQLAlchemy names it.
            is_small: Whether only a chord that has no counters is removed.
        """
        return self._keep[dialect, is_small]

    def _removing(self, dialect: str, is_small: bool) -> tuple[Any, ...]:
        tables, chord = self._tables, self._tables.chord.c
        remove = tables.remove_small if is_small else tables.remove
        if dialect == "postgresql":
            gone = remove.returning(*(chord[name] for name in _KEPT)).cte("gone")
            return (self._insert(dialect, self._end_of(gone.c)),)
        conditions = [chord.id == sa.bindparam("chord")]
        conditions += [chord.counters == 0] if is_small else []
        # Locked at once, nobody else removes it meanwhile.
        end = self._end_of(chord).where(*conditions).with_for_update()
        return self._insert(dialect, end), remove

    def _end_of(self, chord: Any) -> Any:
        """Select what is kept of a chord."""
        failures = sa.bindparam("failures", type_=sa.Integer)
        more = {n: sa.func.coalesce(self._counted(chord, n), 0) for n in ("returned", "failed")}
        return sa.select(
            *(chord.id, chord.body_id, chord.size),
            sa.func.coalesce(chord.size, chord.returned + more["returned"], 0),
            sa.func.coalesce(failures, chord.failed + more["failed"], 0),
            sa.bindparam("how", type_=sa.String),
            # A row that is damaged may lack it.
            sa.func.coalesce(chord.created, sa.bindparam("now", type_=_UNIX_TIME)),
            sa.bindparam("now", type_=_UNIX_TIME),
        )

    def _insert(self, dialect: str, selected: Any) -> Any:
        """Insert a row, in place of one that a chord of the same id has left."""
        ended = self._tables.ended
        names = [column.name for column in ended.c]
        others = names[1:]
        if dialect in ("postgresql", "sqlite"):
            insert_into: Any = {"postgresql": postgresql, "sqlite": sqlite}[dialect].insert
            insert = insert_into(ended).from_select(names, selected)
            new = {name: insert.excluded[name] for name in others}
            return insert.on_conflict_do_update(index_elements=["id"], set_=new)
        into = mysql.insert(ended).from_select(names, selected)
        return into.on_duplicate_key_update({name: into.inserted[name] for name in others})
