"""How a part is counted in SQL: on the row of its chord, or on one of the chord's counters."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from . import counters as many
from .counters import Counted
from .tables import Tables, insert_into

__all__ = ("Elsewhere", "count_part", "expect_more", "spread")


class Elsewhere(Exception):
    """A part is not counted where it was tried: the transaction is to be rolled back.

    Attributes:
        counters: Over how many counters its chord is spread; 0: as far as is known, over none.
    """

    def __init__(self, counters: int) -> None:
        super().__init__(counters)
        self.counters = counters


def count_part(
    tables: Tables,
    connection: Any,
    values: dict[str, Any],
    store: tuple[Any, dict[str, Any]] | None,
    counters: int,
) -> Counted:
    """Count a part, and store its result with it.

    Arguments:
        tables: Those of the ledger.
        connection: In a transaction, or one that commits each statement.
        values: What the statements need: of the part, and for the claim if it is the last one.
        store: The statement that stores its result, and the statement's values.
        counters: Over how many counters the chord is spread, as far as is known.

    Raises:
        Elsewhere: It has to be counted elsewhere, all of it anew.
    """
    count = _count_on_counter if counters else _count_on_chord
    if counters:
        values = {**values, "counter": many.number_of(values["task"], counters)}
    return count(tables, connection, values, store)


def _count_on_chord(tables: Tables, connection: Any, values: Any, store: Any) -> Counted:
    if connection.dialect.name == "postgresql":
        row = _execute_in_one(tables, connection, tables.count_in_one, values, store)
        if row is not None:
            return Counted(bool(row.is_mine), row.header)
        is_taken_back = False
    else:
        is_new = _store_and_insert(tables, connection, values, store)
        counted = _only(values, "chord", "token", "now", "until", "failures")
        is_taken_back = is_new and not connection.execute(tables.count, counted).rowcount
    # Counted just now or before; or the chord is spread, is not here, or has ended.
    claimed = _only(values, "chord", "token")
    row = connection.execute(tables.read_claimed, claimed).one_or_none()
    if row is not None and row.counters:
        raise Elsewhere(row.counters)
    if is_taken_back:
        connection.execute(tables.remove_member, _only(values, "chord", "task"))
    return Counted(is_known=False) if row is None else Counted(bool(row.is_mine), row.header)


def _count_on_counter(tables: Tables, connection: Any, values: Any, store: Any) -> Counted:
    here = _only(values, "chord", "counter")
    if connection.dialect.name == "postgresql":
        statement = tables.count_on_counter_in_one
        row = _execute_in_one(tables, connection, statement, values, store)
        if row is not None:
            return Counted(is_full=bool(row.is_full))
        # Counted before, or its chord was closed just after it had been seen.
        connection.execute(tables.remove_orphan, {**here, "task": values["task"]})
        is_new = False
    else:
        is_new = _store_and_insert(tables, connection, values, store)
        if is_new:
            counted = _only(values, "chord", "counter", "now", "failures")
            connection.execute(tables.count_on_counter, counted)
    row = connection.execute(tables.read_full, here).one_or_none()
    if row is None:
        raise Elsewhere(0)
    # Who counted it before may not have come to look whether it was the last one.
    return Counted(is_full=bool(row.is_full) or not is_new)


def _execute_in_one(tables: Tables, connection: Any, count: Any, values: Any, store: Any) -> Any:
    """Count on PostgreSQL by one statement; return None where it counted nothing."""
    if store is not None:
        count, values = tables.with_store(count, store[0]), {**values, **store[1]}
    return connection.execute(count, values).one_or_none()


def _store_and_insert(tables: Tables, connection: Any, values: Any, store: Any) -> bool:
    """Store a result and insert the member; tell whether it is new."""
    if store is not None:
        connection.execute(*store)
    insert = tables.insert_member[connection.dialect.name]
    return bool(connection.execute(insert, _only(values, "chord", "task", "payload")).rowcount)


def _only(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names}


def spread(
    tables: Tables,
    connection: Any,
    group_id: str,
    task_ids: Collection[str],
    done: Iterable[str] = (),
) -> int:
    """Insert the counters of a chord, if it is large.

    Arguments:
        tables: Those of the ledger.
        connection: In a transaction, or one that commits each statement.
        group_id: The chord.
        task_ids: Its members, each once.
        done: Those of them that were counted on the chord's row so far.

    Returns:
        How many there are; 0: none, the chord is counted on its own row.
    """
    dialect = connection.dialect.name
    # SQLite has one writer at a time, whatever that writes to.
    counters = 0 if dialect == "sqlite" else many.how_many(len(task_ids))
    if counters:
        rows = many.rows(group_id, task_ids, counters, done)
        connection.execute(insert_into(tables.counter, dialect), rows)
    return counters


def expect_more(
    tables: Tables, connection: Any, group_id: str, task_ids: Iterable[str], counters: int
) -> None:
    """Have so many counters of a chord expect more members; each id once."""
    for number, more in many.by_number(task_ids, counters).items():
        values = {"chord": group_id, "counter": number, "more": more}
        connection.execute(tables.expect_more, values)
