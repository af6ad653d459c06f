"""On MySQL and MariaDB a result of more than 64 KiB is cut off, or the task fails without a word.

Celery's columns are BLOB and TEXT there. Tables that a process with the patches creates have
LONGBLOB and LONGTEXT; for those that are there already `python -m chordguard ddl` prints an ALTER.
Until it was executed a result that is too long is an error that says so, whatever the sql_mode.
https://github.com/celery/celery/issues/461
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.utils.encoding import ensure_bytes

from ...engine.patch import Defect, Patch
from ...errors import ResultTooLong
from ...log import warn_once
from ...upstream import sessions
from ...upstream.database import create_tables

if TYPE_CHECKING:
    from celery import Celery

patch = Patch(
    "wide_results",
    Defect(
        "D2",
        "MySQL, MariaDB: a result of more than 64 KiB is cut off or lost",
        only_on=("mysql", "mariadb"),
    ),
    driver="sqlalchemy",
)

#: What stands at the end of a traceback that had to be cut.
CUT = "... (cut)"

#: The backend whose tables may be created now.
_creating: ContextVar[Any] = ContextVar("chordguard_creating", default=None)

#: How many bytes the columns of a table hold, where that is less than 4 GiB: by URL and table.
_limits: dict[tuple[str, str], dict[str, int]] = {}


def _app_of_creating(*_: Any) -> Any:
    return getattr(_creating.get(), "app", None)


@patch.wraps("celery.backends.database", "DatabaseBackend.ResultSession")
def result_session(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    if not _is_mysql(backend.url):
        return wrapped(*args, **kwargs)
    token = _creating.set(backend)
    try:
        return wrapped(*args, **kwargs)
    finally:
        _creating.reset(token)


@patch.wraps(
    "celery.backends.database.session",
    "SessionManager.prepare_models",
    takes={"engine": 0},
    app_of=_app_of_creating,
)
def prepare_models(wrapped: Any, manager: Any, args: Any, kwargs: Any, *, engine: Any) -> Any:
    if not manager.prepared:
        backend = _creating.get()
        tables = _widened(backend.task_cls.__table__, backend.taskset_cls.__table__)
        # What fails is left to Celery, which tries, too.
        create_tables(tables, engine)
    return wrapped(*args, **kwargs)


@patch.wraps("celery.backends.database", "DatabaseBackend._update_result", takes={"task": 0})
def update_result(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, task: Any) -> Any:
    wrapped(*args, **kwargs)
    if not _is_mysql(backend.url):
        return
    table = backend.task_cls.__table__
    limits = _limits_of(backend, table)
    if limits:
        _fit(backend, task, table, limits)


@patch.wraps("celery.backends.database", "DatabaseBackend._save_group", takes={"result": 1})
def save_group(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, result: Any) -> Any:
    if _is_mysql(backend.url):
        table = backend.taskset_cls.__table__
        size = _limits_of(backend, table).get("result")
        if size is not None and not hasattr(table.c.result.type, "pickler"):
            result = ensure_bytes(backend.encode(backend.prepare_value(result)))  # type: ignore[no-untyped-call]
        length = 0 if size is None else _length(table.c.result, result)
        if size is not None and length > size:
            raise _too_long("the saved group", length, table, "result", size)
    return wrapped(*args, **kwargs)


def _is_mysql(url: str) -> bool:
    return url.startswith(("mysql", "mariadb"))


def _widened(*tables: Any) -> Any:
    """Return the meta-data of copies of the tables, with columns that hold up to 4 GiB."""
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql

    metadata = sa.MetaData()
    for table in tables:
        for column in table.to_metadata(metadata).columns:
            if isinstance(column.type, (sa.LargeBinary, sa.PickleType)):
                column.type = mysql.LONGBLOB()
            elif isinstance(column.type, sa.Text):
                column.type = mysql.LONGTEXT()
    return metadata


def alterations(app: Celery | None) -> list[str]:
    """Return the statements that widen Celery's tables where they are there already.

    `app` may have names and schemas of its own for them.
    """
    import sqlalchemy as sa
    from celery.backends.database.models import TaskExtended, TaskSet
    from sqlalchemy.dialects import mysql

    names = (app and app.conf.get("database_table_names")) or {}
    schemas = (app and app.conf.get("database_table_schemas")) or {}
    tables = [
        cls.__table__.to_metadata(
            sa.MetaData(), name=names.get(key, cls.__tablename__), schema=schemas.get(key)
        )
        for key, cls in (("task", TaskExtended), ("group", TaskSet))
    ]
    name_of = mysql.dialect().identifier_preparer.format_table
    return [
        f"ALTER TABLE {name_of(table)} "
        + ", ".join(
            f"MODIFY {column.name} {column.type}"
            for column in table.columns
            if str(column.type).startswith("LONG")
        )
        for table in _widened(*tables).tables.values()
    ]


def _limits_of(backend: Any, table: Any) -> dict[str, int]:
    """Return how many bytes the narrow columns of a table hold; look it up once."""
    key = (backend.url, table.fullname)
    if key not in _limits:
        try:
            _limits[key] = _look_up(backend, table)
        except Exception:  # noqa: BLE001 - it is not the time to complain of the database
            return {}
    return _limits[key]


def _look_up(backend: Any, table: Any) -> dict[str, int]:
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql

    powers = {"TINY": 8, "": 16, "MEDIUM": 24}
    sizes = {
        getattr(mysql, f"{width}{kind}"): 2**power - 1
        for width, power in powers.items()
        for kind in ("BLOB", "TEXT")
    }
    with sessions.session(backend) as session:
        columns = sa.inspect(session.get_bind()).get_columns(table.name, schema=table.schema)
    return {
        column["name"]: sizes[type(column["type"])]
        for column in columns
        if type(column["type"]) in sizes
    }


def _length(column: Any, value: Any) -> int:
    """Return how many bytes the database is sent for a value of a column."""
    if value is None:
        return 0
    if hasattr(column.type, "pickler"):
        return len(column.type.pickler.dumps(value, column.type.protocol))
    return len(value.encode() if isinstance(value, str) else value)


def _fit(backend: Any, task: Any, table: Any, limits: dict[str, int]) -> None:
    """Raise for a result that its column does not hold; shorten what only tells of it."""
    for name, size in limits.items():
        column = table.c.get(name)
        length = 0 if column is None else _length(column, getattr(task, name, None))
        if length <= size or column is None:
            continue
        error = _too_long(f"the result of task {task.task_id}", length, table, name, size)
        if name == "traceback":
            kept = task.traceback.encode()[: size - len(CUT)]
            task.traceback = kept.decode(errors="ignore") + CUT
        elif name != "result":
            # Arguments, and the like: nobody needs them to go on.
            warn_once("Left the column %s empty: %s", name, error)
            setattr(task, name, None)
        elif task.status in states.EXCEPTION_STATES:
            stored = backend.encode_result(error, task.status)
            is_pickled = hasattr(column.type, "pickler")
            task.result = stored if is_pickled else ensure_bytes(backend.encode(stored))  # type: ignore[no-untyped-call]
        else:
            raise error


def _too_long(what: str, length: int, table: Any, name: str, size: int) -> ResultTooLong:
    return ResultTooLong(
        f"{what} takes {length} bytes, the column {table.fullname}.{name} holds {size}: widen it "
        "with the ALTER that `python -m chordguard ddl --dialect mysql` prints"
    )
