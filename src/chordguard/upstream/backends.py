"""Which result backend an app has, and what Celery does with chords on it.

Nothing here imports a driver: a backend object brings its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from celery.app.backends import by_url

from .. import masking
from ..engine.patch import REDIS, SQL

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "DATABASE_BACKEND",
    "REDIS_BACKEND",
    "address",
    "class_and_url",
    "class_of",
    "decodes_as_celery",
    "errors",
    "is_database",
    "is_polled",
    "is_redis",
    "is_supported",
    "is_supported_class",
    "names_of",
    "takes_chords",
    "why_unsupported",
)

REDIS_BACKEND = ("celery.backends.redis", "RedisBackend")
DATABASE_BACKEND = ("celery.backends.database", "DatabaseBackend")


def is_redis(backend: Any) -> bool:
    """Tell whether `backend` is Celery's Redis backend, or made from it (Sentinel)."""
    return isinstance(backend, class_of(*REDIS_BACKEND))


def is_database(backend: Any) -> bool:
    """Tell whether `backend` is Celery's SQLAlchemy backend, or made from it."""
    return isinstance(backend, class_of(*DATABASE_BACKEND))


def is_supported(backend: Any) -> bool:
    """Tell whether `backend` is one whose chords are looked after."""
    return is_redis(backend) or is_database(backend)


def class_and_url(app: Celery) -> tuple[Any, Any]:
    """Return the class of an app's result backend, which is not made, and its URL.

    It raises what a driver that is missing, or a URL that cannot be read, raises.
    """
    found: tuple[Any, Any] = by_url(app.backend_cls or app.conf.result_backend, app.loader)
    return found


def is_supported_class(kind: type) -> bool:
    """Tell whether the backends of a class are supported; see `is_supported`."""
    return any(issubclass(kind, class_of(*path)) for path in (REDIS_BACKEND, DATABASE_BACKEND))


def takes_chords(backend: Any) -> bool:
    """Tell whether Celery starts a chord on `backend`: RPC and no backend at all refuse them."""
    return _is_stock(backend, "ensure_chords_allowed")


def is_polled(backend: Any) -> bool:
    """Tell whether Celery ends the chords of `backend` by `celery.chord_unlock`."""
    # Others have a way of their own to start a chord, such as a counter.
    return is_database(backend) or (takes_chords(backend) and _is_stock(backend, "apply_chord"))


def decodes_as_celery(backend: Any) -> bool:
    """Tell whether `backend` decodes what it stored as Celery's own do."""
    return _is_stock(backend, "decode")


def _is_stock(backend: Any, method: str) -> bool:
    from celery.backends.base import Backend

    own = getattr(getattr(backend, method, None), "__func__", None)
    return own is not None and own is getattr(Backend, method)


def names_of(backend: Any) -> frozenset[str]:
    """Return what fixes and their defects call `backend`; nothing for one that is not supported."""
    if is_redis(backend):
        return frozenset({REDIS})
    if is_database(backend):
        # Without SQLAlchemy there is no such backend.
        from sqlalchemy.engine import make_url

        return frozenset({SQL, make_url(backend.url).get_backend_name()})
    return frozenset()


def why_unsupported(app: Celery) -> str | None:
    """Return why chords of `app` stay as they are, or None where its backend is supported.

    It looks at the backend's class: from Celery 5.6 on one of a database connects when it is made.
    """
    try:
        kind, _ = class_and_url(app)
    except Exception as exc:  # noqa: BLE001 - whatever a driver raises
        why = masking.why_unparsable(exc, "result_backend") or masking.masked(str(exc))
        return f"the result backend cannot be loaded: {why}"
    if is_supported_class(kind):
        return None
    if kind.__name__ == "DisabledBackend":
        return "the app has no result backend: Celery cannot run chords without one"
    return (
        f"the result backend {kind.__module__}.{kind.__name__} is not supported: failed "
        "members are not tolerated there and polls are not bounded; expected redis://, "
        "sentinel:// or db+..., with Celery's own backends"
    )


def errors(backend: Any) -> tuple[type[Exception], ...]:
    """Return what the driver of `backend` raises where it cannot be read."""
    if is_redis(backend):
        error: type[Exception] = backend.redis.exceptions.RedisError
        return (error, *backend.connection_errors)
    if is_database(backend):
        from sqlalchemy.exc import SQLAlchemyError

        return (SQLAlchemyError,)
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
