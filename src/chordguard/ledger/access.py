"""The one way to the ledger of an app, or of a result backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from .. import masking, settings
from ..errors import OUTSIDE, CannotTell, LedgerMissing
from ..log import warn_once
from ..upstream import backends, hooks
from ..upstream.bounded import bounded, disconnect
from .model import Ledger

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "bounded_backend",
    "bounded_ledger",
    "ledger_of",
    "ledger_of_kind",
    "ledger_on",
    "required_ledger",
)


def ledger_of(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return the ledger of a `backend`; None where there is none, or it cannot be used now.

    Arguments:
        backend: The result backend.
        asked: Whether the setting ``chord_ledger`` decides.
        is_read: Whether it is enough that the ledger can be read.
    """
    try:
        return ledger_on(backend, asked=asked, is_read=is_read)
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot reach the ledger; Celery alone counts or polls chords until it is back")
        return None


def ledger_on(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return what `ledger_of` returns, but raise what the driver raises."""
    if asked and not settings.get(backend.app, "chord_ledger"):
        return None
    ledger = ledger_of_kind(backend)
    if ledger is None or not ledger.is_usable():
        return None
    return ledger if is_read or ledger.may_count() else None


def ledger_of_kind(backend: Any) -> Any:
    """Return the ledger of a kind of `backend`, which is not connected to; None: it has none."""
    if hooks.counts_itself(backend):
        return None
    if backends.is_redis(backend):
        from .redis import RedisLedger

        return RedisLedger(backend)
    if hooks.polls_itself(backend.app):
        return None
    if backends.is_django(backend):
        if not backends.has_django_app():
            return None
        # Its models need a Django that is set up, without which there is no such backend.
        from .django import DjangoLedger

        return DjangoLedger(backend)
    if not backends.is_database(backend):
        return None
    # It needs SQLAlchemy, without which there is no such backend.
    from .sql import DatabaseLedger

    return DatabaseLedger(backend)


#: Seconds after which whom somebody waits for is given up.
GIVEN_UP_AFTER = 2.0


def required_ledger(app: Celery) -> Any:
    """Return the ledger of `app`.

    Raises:
        LedgerMissing: There is none.
    """
    return ledger_of(app.backend, is_read=True) or _raise_missing(app)


def _raise_missing(app: Celery) -> NoReturn:
    raise LedgerMissing(
        f"the result backend {type(app.backend).__name__} keeps no ledger of chords: expected "
        "Redis or a SQL database with chord_ledger = True, and its tables (see `python -m "
        "chordguard ddl`)"
    )


@contextmanager
def bounded_ledger(app: Celery, seconds: float = GIVEN_UP_AFTER) -> Iterator[Ledger]:
    """Yield the ledger of `app`, for whom cannot wait: what takes long is not tried again.

    Arguments:
        app: An app with the patches.
        seconds: After which an answer, or a connection, is given up.

    Raises:
        LedgerMissing: There is none.
        CannotTell: The result backend cannot be read, which may come up within the block.
    """
    with bounded_backend(app, seconds) as backend:
        yield ledger_on(backend, is_read=True) or _raise_missing(app)


@contextmanager
def bounded_backend(app: Celery, seconds: float = GIVEN_UP_AFTER) -> Iterator[Any]:
    """Yield the result backend of `app`, whose ledger may not be there yet, as `bounded_ledger`.

    Raises:
        CannotTell: The result backend cannot be read, which may come up within the block.
    """
    try:
        backend = bounded(app, seconds)
    except Exception as exc:  # noqa: BLE001 - it is told
        raise _cannot_tell(app, exc) from masking.cause_to_show(exc)
    try:
        yield backend
    except backends.errors(backend) as exc:
        raise _cannot_tell(app, exc) from masking.cause_to_show(exc)
    finally:
        disconnect(backend)


def _cannot_tell(app: Celery, exc: Exception) -> CannotTell:
    where = backends.address(app)
    why = masking.why_unparsable(exc, "result_backend") or masking.masked(_first_line(exc))
    return CannotTell(f"the result backend {where} cannot be read: {why}")


def _first_line(exc: BaseException) -> str:
    # What the driver says, without SQLAlchemy's statement and its parameters.
    cause = getattr(exc, "orig", None) or exc
    return next(iter(str(cause).splitlines()), "") or type(exc).__name__
