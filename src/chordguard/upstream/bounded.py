"""A second result backend of an app, for callers that cannot wait: bounded in time, no retries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import backends, sessions
from .database import database_module

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "Bounded",
    "bounded",
    "bounded_of",
    "disconnect",
)

T = TypeVar("T")


def bounded(app: Celery, seconds: float) -> Any:
    """Return another result backend of `app`, for whom cannot wait.

    What does not answer within some `seconds` is given up, and nothing is tried again.
    """
    return bounded_of(app, *backends.class_and_url(app), seconds)


def bounded_of(app: Celery, stock: Any, url: Any, seconds: float) -> Any:
    """Return a result backend of a class, at a URL, as `bounded` does."""
    kind: Any = type(stock.__name__, (Bounded, stock), {})
    if not issubclass(kind, backends.class_of(*backends.DATABASE_BACKEND)):
        backend = kind(app=app, url=url)
        if backends.is_redis(backend):
            backend.connparams.update(socket_connect_timeout=seconds, socket_timeout=seconds)
        return backend
    # From 5.7 on it connects when it is made.
    options = dict(app.conf.database_engine_options or {})
    given = options.get("connect_args") or {}
    options["connect_args"] = {**given, **_bound_of_driver(url, seconds)}
    backend = kind(app=app, url=url, engine_options=options)
    # Before 5.7 the app's own options are the stronger ones.
    backend.engine_options = options
    manager = database_module().SessionManager()
    # Else it tries ten times to create Celery's tables; and connects anew for each statement.
    manager.prepared = manager.forked = True
    sessions.give(backend, manager)
    return backend


class Bounded:
    """What a result backend does not try again."""

    #: `database.with_retries` reads it.
    chordguard_is_bounded = True

    def ensure(self, operation: Callable[..., T], args: Sequence[Any], **_: Any) -> T:
        """Run `operation` once, where Celery's own method retries it."""
        return operation(*args)

    def _create_tables(self) -> None:
        """From 5.6 on they are created when the backend is made, which connects."""

    def _ensure_retryable(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        # From 5.7 on.
        for name in ("fallback_exc", "fallback_msg", "max_retries"):
            options.pop(name, None)
        return operation(*args, **options)


def _bound_of_driver(url: str, seconds: float) -> dict[str, Any]:
    """Return what a database driver is told, so that it gives up."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    driver = parsed.get_driver_name()
    if driver.startswith("psycopg"):
        # libpq takes whole seconds, two at least.
        bound: dict[str, Any] = {"connect_timeout": max(2, round(seconds))}
        if "options" not in parsed.query:
            bound["options"] = f"-c statement_timeout={round(seconds * 1000)}"
        return bound
    if driver in ("pymysql", "mysqldb"):
        names = ("connect_timeout", "read_timeout", "write_timeout")
        return dict.fromkeys(names, max(1, round(seconds)))
    return {"timeout": seconds} if driver in ("pysqlite", "sqlite3") else {}


def disconnect(backend: Any) -> None:
    """Give up the connections of a :func:`bounded` backend."""
    if backends.is_redis(backend) and "client" in vars(backend):
        backend.client.connection_pool.disconnect()
    if backends.is_database(backend):
        sessions.dispose(backend)
