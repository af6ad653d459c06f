"""A RETRY that is stored late overwrites the SUCCESS of a member, whose chord then waits.

`Task.retry` publishes before it stores RETRY, so the next run may be done first; up to 5.6 the
backend overwrites blindly, and on SQLite, which has no row locks, 5.7 does, too. Here the result
of a member is stored by one statement, which never replaces a ready state by one that is not.
In 5.6 each worker that is told to revoke a task stores REVOKED for it, also over a SUCCESS, which
a SQL backend (not Redis) lets happen: a SUCCESS stays here.
https://github.com/celery/celery/issues/6115
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from functools import cache
from typing import Any

from celery import states

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_6, celery_5_7, celery_version
from ...lifecycle import counting
from ...upstream import sessions
from ...upstream.database import with_retries

logger = logging.getLogger("chordguard")

patch = Patch(
    "atomic_results",
    Defect(
        "B5",
        "SQL: a RETRY stored late overwrites SUCCESS, the chord waits for its timeout",
        # From 5.7 on Celery locks the row first, which SQLite cannot do.
        only_on=("sqlite",) if celery_version() >= celery_5_7 else (),
    ),
    Defect(
        "B19",
        "SQL: revoking a member that is done replaces its result by a TaskRevokedError",
        since=celery_5_6,
        until=celery_5_7,
    ),
    driver="sqlalchemy",
)

#: The databases whose way to insert or update is known, as SQLAlchemy names them.
DIALECTS = ("mariadb", "mysql", "postgresql", "sqlite")

#: Whether the table of results has the constraint that the statements need, by URL.
_has_constraint: dict[str, bool] = {}


@patch.wraps(
    "celery.backends.database", "DatabaseBackend._store_result", takes={"state": 2, "request": 4}
)
def store(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, state: Any, request: Any) -> Any:
    is_member = request is not None and bool(request.chord)
    if not (is_member or _is_only_revoked(state, request)) or not _can_store(backend):
        return wrapped(*args, **kwargs)
    values, statement = _prepare(backend, *args, **kwargs)

    def store_result() -> None:
        part = counting.part_to_store(request) if is_member else None
        if part is not None and part.store((statement, values)):
            return
        with sessions.session(backend) as session:
            session.connection().execute(statement, values)
            session.commit()

    if celery_version() >= celery_5_7:
        # Celery retries what this function replaces.
        return store_result()
    return with_retries(backend, store_result)


def _is_only_revoked(state: Any, request: Any) -> bool:
    """Tell whether a worker stores that a task is revoked, of which it knows the id alone."""
    is_affected = celery_5_6 <= celery_version() < celery_5_7
    return is_affected and request is None and bool(state == states.REVOKED)


def _can_store(backend: Any) -> bool:
    """Tell whether no task has two rows, as Celery makes the table; look it up once."""
    if _dialect(backend.url) not in DIALECTS:
        return False
    if backend.url not in _has_constraint:
        table = backend.task_cls.__table__
        try:
            _has_constraint[backend.url] = ["task_id"] in _unique_columns(backend, table)
        except Exception:  # noqa: BLE001 - it is not the time to complain of the database
            return False
        if not _has_constraint[backend.url]:
            logger.warning(
                "Results are stored as by Celery alone: the table %s has no unique constraint on "
                "task_id, which the one that Celery creates has",
                table.fullname,
            )
    return _has_constraint[backend.url]


def _unique_columns(backend: Any, table: Any) -> list[Any]:
    import sqlalchemy as sa

    with sessions.session(backend) as session:
        inspector = sa.inspect(session.get_bind())
    constraints = inspector.get_unique_constraints(table.name, schema=table.schema)
    indexes = inspector.get_indexes(table.name, schema=table.schema)
    return [
        *(constraint["column_names"] for constraint in constraints),
        *(index["column_names"] for index in indexes if index["unique"]),
    ]


def _prepare(
    backend: Any,
    task_id: Any,
    result: Any,
    state: Any,
    traceback: Any = None,
    request: Any = None,
    **_: Any,
) -> tuple[dict[str, Any], Any]:
    """Return the row of a result, and the statement that stores it."""
    task = backend.task_cls(task_id)
    backend._update_result(task, result, state, traceback=traceback, request=request)
    values = {key: getattr(task, key) for key in _columns(backend.task_cls)}
    # As with Celery, a row that is updated without a date has that of the update.
    values["touched"] = datetime.now(timezone.utc).replace(tzinfo=None)
    kept = frozenset(states.READY_STATES if state not in states.READY_STATES else ())
    if celery_version() >= celery_5_7 or _is_only_revoked(state, request):
        kept |= {states.SUCCESS}
    # Without new ones the stamps stay.
    written = frozenset(key for key in _columns(backend.task_cls) if key != "stamps" or values[key])
    return values, _statement(backend.task_cls, _dialect(backend.url), written, kept)


@cache
def _columns(task_cls: Any) -> tuple[str, ...]:
    import sqlalchemy as sa

    return tuple(
        attribute.key for attribute in sa.inspect(task_cls).column_attrs if attribute.key != "id"
    )


@cache
def _statement(task_cls: Any, dialect: str, written: frozenset[str], kept: frozenset[str]) -> Any:
    """Return the statement that stores a result, unless the state that is there is `kept`."""
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql, postgresql, sqlite

    table = task_cls.__table__
    dialects = {"mysql": mysql, "mariadb": mysql, "postgresql": postgresql, "sqlite": sqlite}
    insert: Any = dialects[dialect].insert(table)
    insert = insert.values({key: sa.bindparam(key) for key in _columns(task_cls)}).inline()
    # The state comes last: MySQL reads what it has assigned.
    updated = sorted(written - {"task_id"}, key=lambda key: (key == "status", key))
    is_kept = table.c.status.in_(sorted(kept))
    given = insert.inserted if dialects[dialect] is mysql else insert.excluded
    new = {key: given[key] for key in updated}
    touched = sa.bindparam("touched", type_=table.c.date_done.type)
    new["date_done"] = sa.func.coalesce(given.date_done, touched)
    if dialects[dialect] is mysql:
        return insert.on_duplicate_key_update(
            [(key, sa.case((is_kept, table.c[key]), else_=new[key])) for key in updated]
        )
    return insert.on_conflict_do_update(index_elements=[table.c.task_id], set_=new, where=~is_kept)


@cache
def _dialect(url: str) -> str:
    import sqlalchemy as sa

    name: str = sa.engine.make_url(url).get_backend_name()
    return name
