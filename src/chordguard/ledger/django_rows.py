"""The rows of the ledger in Django's database: whether they are there, how a part is counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar
from uuid import uuid4

from django.apps import apps
from django.db import connections, transaction
from django.db.models import Case, Exists, F, Q, Sum, Value, When
from django.db.utils import DatabaseError

from ..log import mark_reported
from ..upstream import django as upstream
from ..upstream.database import refuses
from . import claims, counters, rights
from .checked import MOST_AHEAD
from .counters import Counted
from .model import Part
from .tallies import End

__all__ = ("APP", "DjangoRows", "is_free")

logger = logging.getLogger("chordguard")

T = TypeVar("T")

#: The label of the Django app that has the models.
APP = "chordguard"

#: What a warning begins with where chords cannot be counted.
LEFT = "Chords are counted by django-celery-results alone"

#: Seconds after which tables that were not there are looked for again.
LOOK_AGAIN_SECONDS = 60.0

#: When the tables were looked for in vain (monotonic seconds), by database; 0: they are there.
_missed: dict[str, float] = {}


def is_free(now: float) -> Any:
    """Return the condition that nobody has a claim on a chord."""
    # A claim until a time that makes no sense is none.
    return Q(claimed_until__lt=now) | Q(claimed_until__gt=now + MOST_AHEAD)


class DjangoRows:
    """Reads and writes the models of the app.

    Arguments:
        backend: The `DatabaseBackend` of django-celery-results.
    """

    def __init__(self, backend: Any, results: Any = None) -> None:
        self.backend = backend
        self.results = backend if results is None else results
        self.chord_model = apps.get_model(APP, "LiveChord")
        self.member_model = apps.get_model(APP, "CountedMember")
        self.counter_model = apps.get_model(APP, "Counter")
        self.end_model = apps.get_model(APP, "EndedChord")
        self.alias = upstream.alias_of(self.chord_model)
        #: Whether a part can be counted in the transaction that stores its result.
        self.shares_database = self.alias == upstream.alias_of(backend.TaskModel)

    def is_there(self) -> bool:
        """Tell whether the tables are there."""
        table = self.counter_model._meta.db_table

        def look() -> bool:
            with connections[self.alias].cursor() as cursor:
                names = connections[self.alias].introspection.table_names(cursor)
            return table in names

        return upstream.with_retries(self.backend, self.alias, look)

    def is_usable(self) -> bool:
        """Tell whether the tables are there; warn once if not."""
        missed = _missed.get(self.alias)
        if missed == 0:
            return True
        if missed is not None and time.monotonic() - missed < LOOK_AGAIN_SECONDS:
            return False
        is_there = self.is_there()
        if not is_there and missed is None:
            logger.warning(
                "%s: the tables of chordguard.django are not in the database %r; "
                "run `manage.py migrate %s`",
                LEFT,
                self.alias,
                APP,
            )
        _missed[self.alias] = 0 if is_there else time.monotonic()
        return is_there

    def may_count(self) -> bool:
        """Tell whether the database lets chords be counted, as far as is known."""
        return rights.may_count(self.alias, self.refused, LEFT)

    def refused(self) -> Mapping[str, str]:
        """Return nothing: who may migrate may write."""
        return {}

    def refuse(self, exc: BaseException) -> bool:
        """Stop counting for a while if `exc` says that the database refuses it."""
        if not isinstance(exc, DatabaseError) or not refuses(exc.__cause__):
            return False
        rights.stop_counting(self.alias, {"to write": str(exc).partition("\n")[0]}, LEFT)
        mark_reported(exc)
        return True

    def pause(self) -> None:
        """Close the connection of this thread, of which no child of the pool may inherit any."""
        if not connections[self.alias].in_atomic_block:
            connections[self.alias].close()

    def chords(self) -> Any:
        """Return all live chords, to be filtered."""
        return self.chord_model._base_manager.using(self.alias)

    def members(self) -> Any:
        """Return all counted members, to be filtered."""
        return self.member_model._base_manager.using(self.alias)

    def ends(self) -> Any:
        """Return how chords ended, to be filtered."""
        return self.end_model._base_manager.using(self.alias)

    def _chord(self, group_id: str) -> Any:
        return self.chords().filter(pk=group_id)

    def _claimed(self, group_id: str, token: str) -> Any:
        return self._chord(group_id).filter(claimed_by=token)

    def _members(self, group_id: str) -> Any:
        return self.members().filter(chord_id=group_id)

    def _counters(self, group_id: Any) -> Any:
        return self.counter_model._base_manager.using(self.alias).filter(chord_id=group_id)

    def _transaction(self) -> Any:
        return transaction.atomic(using=self.alias)

    def _retried(self, operation: Callable[[], T]) -> T:
        try:
            return upstream.with_retries(self.backend, self.alias, operation)
        except DatabaseError as exc:
            if not self.refuse(exc):
                # Perhaps the tables are gone: the next one looks.
                _missed.pop(self.alias, None)
            raise

    def _write(self, rows: Any, **values: Any) -> bool:
        """Change rows; tell whether there was one to change."""
        return self._retried(lambda: bool(rows.update(**values)))

    def _remove(self, rows: Any) -> bool:
        """Delete rows by one statement, without signals; tell whether there was one."""
        return self._retried(lambda: bool(rows.all()._raw_delete(self.alias)))

    def _remove_chord(self, group_id: str, end: End | None, *, is_small: bool) -> bool:
        """Remove a chord's row, and keep how it ended; False where there is none to remove.

        `is_small`: only a chord that has no counters is removed.
        """
        chord = self._chord(group_id).filter(**({"counters": 0} if is_small else {}))
        if end is None:
            return self._remove(chord)

        def remove() -> bool:
            with self._transaction():
                columns = ("body_id", "size", "returned", "failed", "created")
                row = chord.select_for_update().values(*columns).first()
                if row is None:
                    return False
                if not is_small:
                    totals = {"more": Sum("returned"), "worse": Sum("failed")}
                    counted = self._counters(group_id).aggregate(**totals)
                    row["returned"] += counted["more"] or 0
                    row["failed"] += counted["worse"] or 0
                self._keep(group_id, row, end)
                chord.all()._raw_delete(self.alias)
            return True

        return self._retried(remove)

    def _keep(self, group_id: str, row: dict[str, Any], end: End) -> None:
        """Keep how a chord ended, in place of what one of the same id has left."""
        if row["size"] is not None:
            row["returned"] = row["size"]
        if end.failed is not None:
            row["failed"] = end.failed
        kept = {"id": group_id, **row, "outcome": end.outcome, "ended": time.time()}
        upstream.put_row(self.ends(), "id", kept)

    def _insert_new(self, model: Any, rows: Collection[Any]) -> None:
        """Insert those of some rows that are not there."""
        upstream.insert_new(model._base_manager.using(self.alias), rows)

    def _how_many(self, task_ids: Collection[str]) -> int:
        """Return how many counters a chord has."""
        # SQLite has one writer at a time, whatever that writes to.
        is_sqlite = connections[self.alias].vendor == "sqlite"
        return 0 if is_sqlite else counters.how_many(len(task_ids))

    def _insert_counters(
        self, group_id: str, ids: Collection[str], number: int, done: Iterable[str] = ()
    ) -> None:
        if number:
            rows = counters.rows(group_id, ids, number, done)
            self._insert_new(self.counter_model, [self.counter_model(**row) for row in rows])

    def _expect_more(self, group_id: str, ids: Iterable[str], number: int) -> None:
        for counter, more in counters.by_number(ids, number).items():
            here = self._counters(group_id).filter(number=counter)
            here.update(expected=F("expected") + more)

    def _count(
        self, group_id: str, part: Part, store: Callable[[], None] | None, token: str
    ) -> Counted | None:
        """Count a part in one transaction; return None where its chord is not here."""
        with self._transaction():
            if store is not None:
                store()
            known = counters.known(group_id)
            if not known and not self._is_visible(group_id):
                return None
            attempt = uuid4().hex
            member = self.member_model(
                chord_id=group_id, task_id=part.task_id, payload=part.payload, attempt=attempt
            )
            self._insert_new(self.member_model, [member])
            here = self._members(group_id).filter(task_id=part.task_id, attempt=attempt)
            counted = self._count_on_counter(group_id, part, Exists(here), known)
            if counted is None:
                found = self._count_on_chord(group_id, part, Exists(here), token)
                if isinstance(found, Counted):
                    return found
                counters.note(group_id, found)
                counted = self._count_on_counter(group_id, part, Exists(here), found)
            if counted is None:
                here._raw_delete(self.alias)
            return counted

    def _is_visible(self, group_id: str) -> bool:
        """Tell whether a chord may be here; MySQL would wait for the transaction that starts it."""
        is_mysql = connections[self.alias].vendor == "mysql"
        return not is_mysql or bool(self._chord(group_id).exists())

    def _count_on_chord(self, group_id: str, part: Part, is_new: Any, token: str) -> Counted | int:
        """Count a part on the row of its chord; return over how many counters that is spread."""
        now = time.time()
        until = now + claims.CLAIM_SECONDS
        is_last = Q(size__lte=F("returned") + 1) & is_free(now)
        # MySQL assigns from left to right and reads what it has assigned: whatever is read comes
        # before it is written.
        self._chord(group_id).filter(is_new, counters=0).update(
            claimed_by=Case(When(is_last, then=Value(token)), default=F("claimed_by")),
            due=Case(When(is_last, then=Value(until)), default=F("due")),
            claimed_until=Case(When(is_last, then=Value(until)), default=F("claimed_until")),
            progressed=now,
            failed=F("failed") + int(part.has_failed),
            returned=F("returned") + 1,
        )
        # Counted just now or before; or the chord is spread, is not here, or has ended.
        header = Case(When(claimed_by=token, then=F("header")))
        row = self._chord(group_id).values_list("counters", "claimed_by", header).first()
        if row is None:
            return 0
        number, claimed_by, packed = row
        return int(number) or Counted(claimed_by == token, packed)

    def _count_on_counter(
        self, group_id: str, part: Part, is_new: Any, number: int
    ) -> Counted | None:
        """Count a part on a counter of its chord; return None where there is none."""
        if not number:
            return None
        here = self._counters(group_id).filter(number=counters.number_of(part.task_id, number))
        is_counted = here.filter(is_new).update(
            progressed=time.time(),
            failed=F("failed") + int(part.has_failed),
            returned=F("returned") + 1,
        )
        row = here.values_list("returned", "expected").first()
        if row is None:
            return None
        # Who counted it before may not have come to look whether it was the last one.
        return Counted(is_full=row[0] >= row[1] or not is_counted)
