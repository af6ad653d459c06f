"""The database of the SQL ledger: its tables, its user's rights, statements that are retried."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from .. import masking
from ..log import mark_reported
from ..upstream import sessions, stores
from ..upstream.database import create_tables, is_refusal, with_retries
from . import rights
from .tables import DIALECTS, Tables

__all__ = ("LedgerDatabase",)

logger = logging.getLogger("chordguard")

T = TypeVar("T")

#: What a warning begins with where chords cannot be counted.
POLLED = "Chords are polled, not counted, as in Celery alone"


def _verb(exc: Any) -> str:
    """Return what a refused statement begins with."""
    return next(iter(str(exc.statement or "").split()), "")


def _reason(exc: Any) -> str:
    """Return the first line of what the driver says."""
    return next(iter(str(exc.orig).splitlines()), "")


#: Whether the tables are there, by (URL, tables); what is not listed was not looked at yet.
_are_there: dict[tuple[str, Tables], bool] = {}


class LedgerDatabase:
    """Runs statements on the tables of a ledger.

    Arguments:
        backend: Celery's `DatabaseBackend`, whose engine and sessions are used.
        results: The result backend of the app, where it is another one.

    Its methods raise what SQLAlchemy raises, after the backend's own retries.
    """

    def __init__(self, backend: Any, results: Any = None) -> None:
        self.backend = backend
        self.results = backend if results is None else results
        self.tables = Tables.of(backend.app)
        self._key = (backend.url, self.tables)
        #: The session manager of its own, if it has one.
        self._kept: Any = None

    def keep_engine(self) -> None:
        self._kept = sessions.keep(self.backend)

    def is_usable(self) -> bool:
        """Tell whether the tables are there; the first time, create those that are not."""
        if self._key not in _are_there:
            _are_there[self._key] = with_retries(self.backend, self._create_tables)
        return _are_there[self._key]

    def is_there(self) -> bool:
        with self._session() as session:
            return self._has_tables(session.get_bind())

    def may_count(self) -> bool:
        return rights.may_count(self._key, self.refused, POLLED)

    def refuse(self, exc: BaseException) -> bool:
        if not is_refusal(exc):
            return False
        refused = {_verb(exc): _reason(exc)}
        with suppress(Exception):
            refused = self.refused() or refused
        rights.stop_counting(self._key, refused, POLLED)
        mark_reported(exc)
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
            if not is_refusal(exc):
                raise
            return _reason(exc)
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
            return with_retries(self.backend, operation)
        except DatabaseError as exc:
            if not self.refuse(exc):
                # Perhaps somebody has dropped the tables: the next one looks.
                self._look_at_tables_again()
            raise

    def _session(self) -> AbstractContextManager[Any]:
        return sessions.session(self.backend, self._kept)

    def _transaction(self, is_one_statement: bool = False) -> AbstractContextManager[Any]:
        return sessions.transaction(self.backend, self._kept, is_one_statement=is_one_statement)

    def _create_tables(self) -> bool:
        with self._session() as session:
            engine = session.get_bind()
        if engine.dialect.name not in DIALECTS:
            self._complain(f"the database {engine.dialect.name} is not supported")
            return False
        # Asked first, a database that is away is not asked again and again.
        if self._has_tables(engine):
            return True
        if self.results is self.backend and stores.has_store(self.backend.app):
            return False  # the app keeps its chords elsewhere
        error = create_tables(self.tables.metadata, engine)
        if error is None or self._has_tables(engine):
            return True
        self._complain(
            f"the tables {', '.join(self.tables.metadata.tables)} are not there and cannot be "
            f"created ({masking.masked(str(error.orig))}): have them created "
            f"with the output of `python -m chordguard ddl --dialect {engine.dialect.name}` and "
            "restart"
        )
        return False

    def _has_tables(self, engine: Any) -> bool:
        last = self.tables.metadata.sorted_tables[-1]
        return bool(sa.inspect(engine).has_table(last.name, schema=last.schema))

    def _complain(self, why: str) -> None:
        logger.warning("%s: %s", POLLED, why)

    def _look_at_tables_again(self) -> None:
        """Have `is_usable` look whether the tables are still there."""
        _are_there.pop(self._key, None)
