"""Celery's SQLAlchemy backend: its module, its retries, its refusals, its tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = (
    "create_tables",
    "database_module",
    "is_refusal",
    "refuses",
    "with_retries",
)

T = TypeVar("T")

#: What a database answers that will answer the same again, by SQLSTATE (PostgreSQL), ...
REFUSED_STATES = (
    "25006",  # read-only transaction
    "42501",  # insufficient privilege
    "53100",  # disk full
    "P0001",  # a trigger raises
)
#: ... by number (MySQL, MariaDB), ...
REFUSED_NUMBERS = (
    *(1044, 1142, 1143, 1227, 1370),  # no privilege
    *(1290, 1792, 1836),  # read-only
    *(1021, 1114),  # disk full
    1644,  # a trigger raises
)
#: ... by SQLite's result code: no permission, read-only, disk full, a trigger raises; ...
REFUSED_RESULTS = (3, 8, 13, 23, 1811)
#: ... or, before Python 3.11, by SQLite's text.
REFUSED_TEXTS = ("readonly database", "disk is full", "not authorized")

#: The attribute of a backend that tries nothing again: `bounded.Bounded` has it.
IS_BOUNDED = "chordguard_is_bounded"

#: How often tables are tried to be created, since several processes may do so at once.
CREATE_ATTEMPTS = 6


def with_retries(backend: Any, operation: Callable[[], T]) -> T:
    """Run `operation` under the database backend's own retry policy.

    What the database refuses for good is not tried again.
    """
    if getattr(backend, IS_BOUNDED, False):
        return operation()
    refusals: list[Exception] = []

    @wraps(operation)
    def attempt() -> T | None:
        try:
            return operation()
        except Exception as exc:
            if not is_refusal(exc):
                raise
            refusals.append(exc)
            return None

    if hasattr(backend, "_ensure_retryable"):  # 5.7
        result: Any = backend._ensure_retryable(attempt)
    else:
        result = database_module().retry(attempt)()
    if refusals:
        raise refusals[0]
    return cast("T", result)


def is_refusal(exc: BaseException | None) -> bool:
    """Tell whether a database refuses a statement for good: a right is missing, it is read-only.

    `exc` is what SQLAlchemy raised.
    """
    return refuses(getattr(exc, "orig", None))


def refuses(cause: Any) -> bool:
    """Tell whether a driver raised `cause` since the database refuses a statement for good."""
    if cause is None:
        return False
    number = next(iter(getattr(cause, "args", ())), None)
    result = getattr(cause, "sqlite_errorcode", None)
    if result is not None or type(cause).__module__.startswith("sqlite3"):
        text = str(cause)
        # What a trigger raises has its own words.
        is_raised = type(cause).__name__ == "IntegrityError" and "constraint failed" not in text
        return (
            (result is None and is_raised)
            or result in REFUSED_RESULTS
            or (result or 0) & 0xFF in REFUSED_RESULTS
            or any(refused in text for refused in REFUSED_TEXTS)
        )
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state in REFUSED_STATES or (isinstance(number, int) and number in REFUSED_NUMBERS)


def create_tables(metadata: Any, engine: Any) -> Any:
    """Create the tables that are not there; return the `DatabaseError` if that was not possible."""
    from sqlalchemy.exc import DatabaseError

    error = None
    for attempt in range(CREATE_ATTEMPTS):
        try:
            metadata.create_all(engine)
        except DatabaseError as exc:
            # Another process may just be creating them.
            error = exc
            time.sleep(0.01 * 2**attempt)
        else:
            return None
    return error


def database_module() -> Any:
    """Return the module of Celery's SQLAlchemy backend, of which there is an instance."""
    return sys.modules["celery.backends.database"]
