"""The one way to the ledger of an app, or of a result backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from .. import masking, settings
from ..errors import OUTSIDE, CannotTell, LedgerMissing
from ..log import warn_once
from ..upstream import backends, hooks, stores
from ..upstream.bounded import bounded, disconnect
from .model import Ledger

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "bounded_ledger",
    "bounded_of_kind",
    "ledger_beside",
    "ledger_beside_on",
    "ledger_of",
    "ledger_of_kind",
    "ledger_on",
    "missing_ledger",
    "required_ledger",
)


def ledger_of(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return the ledger of an app; None where there is none, or it cannot be used now.

    Arguments:
        backend: The app's result backend.
        asked: Whether the setting ``chord_ledger`` decides.
        is_read: Whether it is enough that the ledger can be read.
    """
    return _or_none(lambda: ledger_on(backend, asked=asked, is_read=is_read))


def ledger_on(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return what `ledger_of` returns, but raise what the driver raises."""
    if asked and not settings.get(backend.app, "chord_ledger"):
        return None
    return _usable(ledger_of_kind(backend), is_read)


def ledger_beside(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return the ledger that lies beside the results of a `backend`, as `ledger_of` does.

    Where the app's ledger has a store of its own, that is one for the chords which are not in it:
    those that a process without the setting has started.
    """
    return _or_none(lambda: ledger_beside_on(backend, asked=asked, is_read=is_read))


def ledger_beside_on(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return what `ledger_beside` returns, but raise what the driver raises."""
    if asked and not settings.get(backend.app, "chord_ledger"):
        return None
    return _usable(_beside(backend), is_read)


def _or_none(find: Callable[[], Any]) -> Any:
    """Return the ledger that is found; None where it cannot be reached."""
    try:
        return find()
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot reach the ledger; Celery alone counts or polls chords until it is back")
        return None


def _usable(ledger: Any, is_read: bool) -> Any:
    if ledger is None or not ledger.is_usable():
        return None
    return ledger if is_read or ledger.may_count() else None


def ledger_of_kind(backend: Any) -> Any:
    """Return the ledger of the app of a result `backend`; nothing is connected to.

    None: it has none.
    """
    if not stores.has_store(backend.app):
        return _beside(backend)
    return (
        None if hooks.counts_itself(backend) else _ledger_in(stores.store_of(backend.app), backend)
    )


def _beside(backend: Any) -> Any:
    if hooks.counts_itself(backend):
        return None
    is_polled = backends.keeps_rows(backend)
    keeps_ledger = backends.capabilities(backend).keeps_ledger
    if not keeps_ledger or (is_polled and hooks.polls_itself(backend.app)):
        return None
    return _ledger_in(backend, backend)


def _ledger_in(store: Any, results: Any) -> Any:
    if backends.is_redis(store):
        from .redis import RedisLedger

        return RedisLedger(store, results)
    if backends.is_django(store):
        if not backends.has_django_app():
            return None
        # Its models need a Django that is set up, without which there is no such backend.
        from .django import DjangoLedger

        return DjangoLedger(store, results)
    # It needs SQLAlchemy, without which there is no such store.
    from .sql import DatabaseLedger

    return DatabaseLedger(store, results)


#: Seconds after which whom somebody waits for is given up.
GIVEN_UP_AFTER = 2.0


def required_ledger(app: Celery) -> Any:
    """Return the ledger of `app`.

    Raises:
        LedgerMissing: There is none.
    """
    return ledger_of(app.backend, is_read=True) or _raise_missing(app)


def _raise_missing(app: Celery) -> NoReturn:
    raise missing_ledger(app)


def missing_ledger(app: Celery) -> LedgerMissing:
    """Return the error of an app that has no ledger."""
    if stores.has_store(app):
        return LedgerMissing(
            f"the ledger at {stores.address(app)} cannot be used: expected a Redis, or a SQL "
            "database with its tables (see `python -m chordguard ddl`)"
        )
    return LedgerMissing(
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
        CannotTell: It cannot be read, which may come up within the block.
    """
    with bounded_of_kind(app, seconds) as ledger:
        is_kept = settings.get(app, "chord_ledger")
        yield (_usable(ledger, is_read=True) if is_kept else None) or _raise_missing(app)


@contextmanager
def bounded_of_kind(app: Celery, seconds: float = GIVEN_UP_AFTER) -> Iterator[Any]:
    """Yield what `ledger_of_kind` returns, as `bounded_ledger`; it may not be there yet.

    Raises:
        CannotTell: It cannot be read, which may come up within the block.
    """
    made: list[Any] = []
    try:
        with _told_of(app, (Exception,)):
            made.append(bounded(app, seconds))
            if stores.has_store(app):
                made.append(stores.bounded_store(app, seconds))
        results, store = made[0], made[-1]
        with _told_of(app, (*backends.errors(results), *backends.errors(store))):
            if store is results:
                yield _beside(results)
            else:
                yield None if hooks.counts_itself(results) else _ledger_in(store, results)
    finally:
        for backend in made:
            disconnect(backend)


@contextmanager
def _told_of(app: Celery, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise what a driver raises as :exc:`CannotTell`."""
    try:
        yield
    except errors as exc:
        raise _cannot_tell(app, exc) from masking.cause_to_show(exc)


def _cannot_tell(app: Celery, exc: Exception) -> CannotTell:
    if stores.has_store(app):
        what, setting = f"ledger at {stores.address(app)}", stores.NAME
    else:
        what, setting = f"result backend {backends.address(app)}", "result_backend"
    why = masking.why_unparsable(exc, setting) or masking.masked(_first_line(exc))
    return CannotTell(f"the {what} cannot be read: {why}")


def _first_line(exc: BaseException) -> str:
    # What the driver says, without SQLAlchemy's statement and its parameters.
    cause = getattr(exc, "orig", None) or exc
    return next(iter(str(cause).splitlines()), "") or type(exc).__name__
