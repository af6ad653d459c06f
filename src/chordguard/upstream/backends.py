"""Which result backend an app has, and what Celery does with chords on it.

Nothing here imports a driver: a backend object brings its own.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.app.backends import by_url

from .. import masking
from ..engine.patch import COUNTING, DJANGO, POLLED, REDIS, SQL

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "DATABASE_BACKEND",
    "DJANGO_BACKEND",
    "REDIS_BACKEND",
    "Capabilities",
    "address",
    "can_be_read",
    "capabilities",
    "capabilities_of",
    "class_and_url",
    "class_of",
    "decodes_as_celery",
    "errors",
    "has_django_app",
    "is_database",
    "is_django",
    "is_redis",
    "keeps_rows",
    "names_of",
    "takes_chords",
    "why_unloadable",
    "why_without_ledger",
)

REDIS_BACKEND = ("celery.backends.redis", "RedisBackend")
DATABASE_BACKEND = ("celery.backends.database", "DatabaseBackend")
DJANGO_BACKEND = ("django_celery_results.backends.database", "DatabaseBackend")

#: The backends whose own store can keep a ledger.
_WITH_LEDGER = (REDIS_BACKEND, DATABASE_BACKEND, DJANGO_BACKEND)

#: The Django app whose models are the ledger there.
DJANGO_APP = "chordguard.django"


def is_redis(backend: Any) -> bool:
    """Tell whether `backend` is Celery's Redis backend, or made from it (Sentinel)."""
    return isinstance(backend, class_of(*REDIS_BACKEND))


def is_database(backend: Any) -> bool:
    """Tell whether `backend` is Celery's SQLAlchemy backend, or made from it."""
    return isinstance(backend, class_of(*DATABASE_BACKEND))


def is_django(backend: Any) -> bool:
    """Tell whether `backend` is the database backend of django-celery-results."""
    return isinstance(backend, class_of(*DJANGO_BACKEND))


def has_django_app() -> bool:
    """Tell whether the Django of this process has the app with the tables of the ledger."""
    from django.apps import apps

    return bool(apps.ready and apps.is_installed(DJANGO_APP))


def keeps_rows(backend: Any) -> bool:
    """Tell whether `backend` keeps results in a SQL database, Celery's own way or Django's."""
    return is_database(backend) or is_django(backend)


@dataclass(frozen=True)
class Capabilities:
    """What can be done with chords on a kind of result backend.

    Attributes:
        counts: Celery counts the parts of a chord there, in whichever way: with Redis' own
            commands, with a counter of a key-value store, or as a backend of others does.
        increments: That is `BaseKeyValueStoreBackend`'s counter, `incr` (memcached, DynamoDB), or
            a copy of it (Google Cloud Storage).
        polls: Celery counts nothing, `celery.chord_unlock` polls the results of the members.
        keeps_ledger: Its own store can keep a ledger.
    """

    counts: bool = False
    increments: bool = False
    polls: bool = False
    keeps_ledger: bool = False

    @property
    def takes_chords(self) -> bool:
        """Whether Celery starts a chord there: RPC and no backend at all refuse them."""
        return self.counts or self.polls


def capabilities(backend: Any) -> Capabilities:
    """Return what a backend, or a class of them, is capable of; of None: nothing.

    The class is looked at alone: some backends connect when they are made.
    """
    from celery.backends.base import Backend

    kind = backend if isinstance(backend, type) else type(backend)
    if not issubclass(kind, Backend) or not _is_stock(kind, "ensure_chords_allowed"):
        return Capabilities()
    increments = bool(getattr(kind, "implements_incr", False))
    counts = increments or not _is_stock(kind, "apply_chord")
    keeps_ledger = any(_is_made_from(kind, path) for path in _WITH_LEDGER)
    return Capabilities(counts, increments, polls=not counts, keeps_ledger=keeps_ledger)


def capabilities_of(app: Celery) -> Capabilities:
    """Return what the result backend of `app` is capable of; it is not made for that."""
    try:
        kind, _ = class_and_url(app)
    except Exception:  # noqa: BLE001 - `why_unloadable` tells it
        return Capabilities()
    return capabilities(kind)


def can_be_read(backend: Any) -> bool:
    """Tell whether any process can read the results of a `backend`.

    Those of `rpc://` are messages to the process that sent the task; without one there are none.
    """
    from celery.backends.base import DisabledBackend

    is_rpc = isinstance(backend, class_of("celery.backends.rpc", "RPCBackend"))
    return not is_rpc and not isinstance(backend, DisabledBackend)


def takes_chords(backend: Any) -> bool:
    """Tell whether chords run on `backend`."""
    return capabilities(backend).takes_chords


def class_and_url(app: Celery) -> tuple[Any, Any]:
    """Return the class of an app's result backend, which is not made, and its URL.

    It raises what a driver that is missing, or a URL that cannot be read, raises.
    """
    found: tuple[Any, Any] = by_url(app.backend_cls or app.conf.result_backend, app.loader)
    return found


def decodes_as_celery(backend: Any) -> bool:
    """Tell whether `backend` decodes what it stored as Celery's own do."""
    return _is_stock(type(backend), "decode")


def _is_made_from(kind: type, path: tuple[str, str]) -> bool:
    return issubclass(kind, class_of(*path))


def _is_stock(kind: type, method: str) -> bool:
    """Tell whether a class of backends has a method of Celery's base class, wrapped or not."""
    from celery.backends.base import Backend

    found = (inspect.unwrap(getattr(owner, method)) for owner in (kind, Backend))
    return next(found) is next(found)


def names_of(app: Celery) -> frozenset[str]:
    """Return what fixes and their defects call the result backend of `app`.

    Nothing for one without chords, or one that cannot be loaded. It is not made for that.
    """
    try:
        kind, url = class_and_url(app)
        if _is_made_from(kind, REDIS_BACKEND):
            return frozenset({REDIS})
        if _is_made_from(kind, DATABASE_BACKEND):
            # Without SQLAlchemy there is no such backend.
            from sqlalchemy.engine import make_url

            dialect = make_url(url or app.conf.database_url).get_backend_name()
            return frozenset({SQL, dialect})
        if _is_made_from(kind, DJANGO_BACKEND):
            from . import django

            return frozenset({DJANGO, django.vendor_of(kind)})
    except Exception:  # noqa: BLE001 - `why_unloadable` tells it
        return frozenset()
    can = capabilities(kind)
    names = {POLLED: can.polls, COUNTING: can.increments}
    return frozenset(name for name, is_it in names.items() if is_it)


def why_unloadable(app: Celery) -> str | None:
    """Return why the result backend of `app` cannot be loaded; None where it can be."""
    try:
        class_and_url(app)
    except Exception as exc:  # noqa: BLE001 - whatever a driver raises
        why = masking.why_unparsable(exc, "result_backend") or masking.masked(str(exc))
        return f"the result backend cannot be loaded: {why}"
    return None


def why_without_ledger(app: Celery) -> str | None:
    """Return what is missing for the ledger of an app whose results django-celery-results stores.

    None: nothing, or the app has another result backend, or Django is not set up yet.
    """
    try:
        kind, _ = class_and_url(app)
    except Exception:  # noqa: BLE001 - `why_unloadable` tells it
        return None
    if not _is_made_from(kind, DJANGO_BACKEND) or has_django_app():
        return None
    return (
        f"{DJANGO_APP} is not in INSTALLED_APPS: chords on django-db keep no ledger, and hang if a "
        "member runs twice, a worker dies, or the transaction that starts them is not committed yet"
    )


def errors(backend: Any) -> tuple[type[Exception], ...]:
    """Return what the driver of `backend` raises where it cannot be read."""
    if is_redis(backend):
        error: type[Exception] = backend.redis.exceptions.RedisError
        return (error, *backend.connection_errors)
    if is_database(backend):
        from sqlalchemy.exc import SQLAlchemyError

        return (SQLAlchemyError,)
    if is_django(backend):
        from . import django

        return django.errors()
    return (OSError,)


def address(app: Celery) -> str:
    """Return where the results of `app` are, without user name and password."""
    try:
        _, url = class_and_url(app)
        return masking.address_of(url)
    except Exception:  # noqa: BLE001 - one that cannot be read is not shown
        return "of the app"


def class_of(module: str, name: str) -> Any:
    """Return a class; for one whose module was never imported a tuple of none."""
    return getattr(sys.modules.get(module), name, ())
