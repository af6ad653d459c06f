"""django-celery-results as we read it: its rows, its database, errors that pass.

It is imported only where there is such a result backend, which brings Django along.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from celery import states
from celery.utils.time import maybe_timedelta
from django.db import connections, router, transaction
from django.db.utils import DatabaseError, IntegrityError, InterfaceError, OperationalError
from django.utils import timezone

from ..errors import OUTSIDE
from .database import IS_BOUNDED

__all__ = (
    "alias_of",
    "decoded_rows",
    "delete_expired",
    "errors",
    "insert_new",
    "put_result",
    "put_row",
    "ready_rows",
    "results",
    "select_rows",
    "vendor_of",
    "with_retries",
)

T = TypeVar("T")

#: How often an operation is tried that fails for what may pass: a deadlock, a lost connection, a
#: database file that is locked.
ATTEMPTS = 4
#: Seconds before the second attempt; each further one waits twice as long.
FIRST_PAUSE = 0.05


def errors() -> tuple[type[Exception], ...]:
    """Return what Django raises where the database cannot be read."""
    return (DatabaseError, InterfaceError)


def alias_of(model: Any) -> str:
    """Return the database in which rows of `model` are written.

    They are read there, too: a replica may be late.
    """
    alias: str = router.db_for_write(model)
    return alias


def vendor_of(backend: Any) -> str:
    """Return which database a `backend` has, as Django names it: "postgresql", "sqlite", ..."""
    vendor: str = connections[alias_of(backend.TaskModel)].vendor
    return vendor


def results(backend: Any) -> Any:
    """Return all stored results of a `backend`, to be filtered."""
    model = backend.TaskModel
    return model._default_manager.using(alias_of(model))


def with_retries(
    backend: Any,
    alias: str,
    operation: Callable[[], T],
    may_repeat: Callable[[], bool] = lambda: True,
) -> T:
    """Run `operation`, again where it failed for what may pass.

    Within a transaction of the caller it runs once: the database has spoilt that.

    Arguments:
        backend: The result backend; a bounded one tries nothing again.
        alias: The database.
        operation: What is done.
        may_repeat: Tells, where it has failed, whether it did nothing.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return operation()
        except (OperationalError, InterfaceError):
            connection = connections[alias]
            if connection.in_atomic_block:
                raise
            connection.close_if_unusable_or_obsolete()
            is_bounded = getattr(backend, IS_BOUNDED, False)
            if attempt == ATTEMPTS or is_bounded or not may_repeat():
                raise
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("not reached")


def select_rows(
    backend: Any, columns: Sequence[str], task_ids: Sequence[str], **condition: Any
) -> list[tuple[Any, ...]]:
    """Return `columns` of those stored results among `task_ids` that meet a `condition`."""

    def read_rows() -> list[tuple[Any, ...]]:
        # Without the model's own order, for which rows would be sorted.
        found = results(backend).filter(task_id__in=task_ids, **condition).order_by()
        return list(found.values_list(*columns))

    return with_retries(backend, alias_of(backend.TaskModel), read_rows)


def ready_rows(backend: Any, task_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of those of `task_ids` that are ready, by id."""
    ready = sorted(states.READY_STATES)
    return dict(select_rows(backend, ("task_id", "status"), task_ids, status__in=ready))


def decoded_rows(
    backend: Any, task_ids: Sequence[str]
) -> Iterator[tuple[str, str, Any, Exception | None]]:
    """Yield (id, state, value, why it cannot be decoded) of each stored result among `task_ids`."""
    columns = ("task_id", "status", "result", "content_encoding")
    for task_id, state, content, encoding in select_rows(backend, columns, task_ids):
        row = backend.TaskModel(content_encoding=encoding)
        try:
            value = backend.decode_content(row, content)
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever was stored
            yield task_id, state, None, exc
        else:
            yield task_id, state, value, None


def delete_expired(backend: Any, spared: Any) -> None:
    """Delete the expired results of a `backend`, as its `cleanup` does, but for some.

    Arguments:
        backend: The result backend.
        spared: A query for the ids of the tasks whose results stay.
    """
    before = timezone.now() - maybe_timedelta(backend.expires)
    group = backend.GroupModel

    def delete_rows() -> None:
        results(backend).filter(date_done__lt=before).exclude(task_id__in=spared).delete()
        groups = group._default_manager.using(alias_of(group))
        groups.filter(date_done__lt=before).delete()

    with_retries(backend, alias_of(backend.TaskModel), delete_rows)


def put_result(rows: Any, row: dict[str, Any]) -> None:
    """Store a result by one statement, or two; a ready state is never replaced by another one.

    Arguments:
        rows: All results, to be filtered.
        row: The fields of the result.
    """
    row = {**row, "date_done": timezone.now()}
    if row["status"] in states.READY_STATES:
        put_row(rows, "task_id", row)
        return
    not_ready = rows.exclude(status__in=sorted(states.READY_STATES))
    if not _update(not_ready, "task_id", row):
        insert_new(rows, [rows.model(**row)])


def put_row(rows: Any, key: str, row: dict[str, Any]) -> None:
    """Insert a row, or put it in the place of the one with that `key`; by one statement, or two.

    Arguments:
        rows: All rows, to be filtered.
        key: The name of its unique field.
        row: Its fields.
    """
    features = connections[rows.db].features
    if features.supports_update_conflicts:
        target = {"unique_fields": [key]}
        rows.bulk_create(
            [rows.model(**row)],
            update_conflicts=True,
            update_fields=[name for name in row if name != key],
            **(target if features.supports_update_conflicts_with_target else {}),
        )
    elif not _update(rows, key, row):
        insert_new(rows, [rows.model(**row)])


def _update(rows: Any, key: str, row: dict[str, Any]) -> bool:
    written = {name: value for name, value in row.items() if name != key}
    return bool(rows.filter(**{key: row[key]}).update(**written))


def insert_new(rows: Any, new: Collection[Any]) -> None:
    """Insert those of some `new` rows that are not there."""
    if connections[rows.db].features.supports_ignore_conflicts:
        rows.bulk_create(new, ignore_conflicts=True)
        return
    for row in new:
        with suppress(IntegrityError), transaction.atomic(using=rows.db):
            row.save(using=rows.db, force_insert=True)
