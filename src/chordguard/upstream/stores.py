"""The store of a ledger of its own: a second result backend, made of `chord_ledger_url`.

It is of Celery's own class for Redis or SQL databases, so that it connects, retries and survives a
fork as a result backend does. No result is stored in it, and it has no table of Celery's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.app.backends import by_url

from .. import masking, settings
from ..errors import SettingError
from . import backends
from .bounded import bounded_of
from .database import database_module

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "address",
    "bounded_store",
    "check",
    "has_store",
    "is_served",
    "store_of",
)

NAME = "chord_ledger_url"

#: The switch of the fix that uses the store.
SWITCH = f"{settings.FIX_PREFIX}own_ledger"

#: What URLs begin with that Celery reads as those of a result backend; others are SQLAlchemy's.
CELERYS = ("db", "database", "redis", "rediss", "sentinel")

#: The attribute of an app that holds its stores by URL: `store_of` writes and reads it.
STORES = "_chordguard_stores"


class Store:
    """What a result backend does not do that keeps a ledger alone."""

    #: `sessions.new_manager` reads it.
    chordguard_has_own_tables = True

    session_manager: Any = None

    def _create_tables(self) -> None:
        """From 5.6 on Celery's tables are created when the backend is made."""

    def ResultSession(self, session_manager: Any = None) -> Any:  # noqa: N802 - Celery's
        """Open a session; up to 5.4 all backends of a process share a manager."""
        kind: Any = super()
        return kind.ResultSession(session_manager or self.session_manager)


def has_store(app: Celery) -> bool:
    """Tell whether the ledger of `app` has a store of its own."""
    return settings.get(app, NAME) is not None and bool(
        settings.get(app, SWITCH) and settings.get(app, "chord_ledger")
    )


def is_served(backend: Any) -> bool:
    """Tell whether we end the chords of an app with this result backend."""
    return backends.takes_chords(backend) or has_store(backend.app)


def store_of(app: Celery) -> Any:
    """Return the store of an app's ledger, which all threads share; it connects when it is used.

    It raises what a driver that is missing, or a URL that cannot be read, raises.
    """
    url = settings.get(app, NAME)
    stores: dict[str, Any] = vars(app).setdefault(STORES, {})
    if url not in stores:
        stores[url] = _made(app, *_class_and_url(app, url))
    return stores[url]


def bounded_store(app: Celery, seconds: float) -> Any:
    """Return another store of an app's ledger, for whom cannot wait; see :mod:`.bounded`."""
    stock, url = _class_and_url(app, settings.get(app, NAME))
    return bounded_of(app, type(stock.__name__, (Store, stock), {}), url, seconds)


def address(app: Celery) -> str:
    """Return where the store is, without user name and password."""
    return masking.address_of(settings.get(app, NAME))


def check(app: Celery) -> None:
    """Raise :exc:`SettingError` where no store can be made of the setting; nothing is connected to.

    What is shown of the URL is neither its user name nor its password.
    """
    if not has_store(app):
        return
    try:
        store = store_of(app)
        if backends.is_database(store):
            from sqlalchemy import create_engine

            # It imports the driver.
            url = create_engine(store.url).url
            if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
                raise ValueError("a database in memory is that of one process")
    except Exception as exc:  # noqa: BLE001 - whatever a driver raises
        why = masking.why_unparsable(exc, NAME) or masking.masked(str(exc))
        raise SettingError(
            f"{NAME} cannot be used ({why}): expected {settings.SETTINGS[NAME].valid}, and its "
            "driver installed."
        ) from masking.cause_to_show(exc)


def _class_and_url(app: Celery, url: str) -> tuple[Any, str]:
    first = url.partition("://")[0].partition("+")[0]
    # Celery also reads "module:Class+redis://...".
    is_celerys = first in CELERYS or ":" in first
    kind, url = by_url(url if is_celerys else f"db+{url}", app.loader)
    if not backends.capabilities(kind).keeps_ledger:
        raise ValueError(f"{kind.__module__}.{kind.__name__} is no backend of Redis or SQLAlchemy")
    return kind, url


def _made(app: Celery, stock: Any, url: str) -> Any:
    kind: Any = type(stock.__name__, (Store, stock), {})
    store = kind(app=app, url=url)
    # From 5.3 on a backend asks the configuration; nothing in this one is of one thread alone.
    store.thread_safe = True
    if backends.is_database(store):
        if store.session_manager is None:
            store.session_manager = database_module().SessionManager()
        store.session_manager.prepared = True
    return store
