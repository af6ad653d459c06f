"""The result backends that chordguard knows, and how each reads many results at once.

Nothing here imports a driver: a backend object brings its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from celery import states
from celery.app.backends import by_url

from . import masking
from ._patch import REDIS, SQL
from .errors import OUTSIDE, ResultUnreadable

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "StoredResult",
    "address",
    "announce",
    "bounded",
    "chunks",
    "class_and_url",
    "create_tables",
    "database_module",
    "delete_expired",
    "disconnect",
    "errors",
    "forget_results",
    "is_database",
    "is_polled",
    "is_redis",
    "is_refusal",
    "is_supported",
    "is_supported_class",
    "names_of",
    "read_metas",
    "read_results",
    "ready_states",
    "select",
    "silence",
    "stored_result",
    "takes_chords",
    "unreadable",
    "why_unsupported",
    "with_retries",
)

T = TypeVar("T")

_REDIS = ("celery.backends.redis", "RedisBackend")
_DATABASE = ("celery.backends.database", "DatabaseBackend")

#: How many results one statement, or one command, reads.
CHUNK = 500

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
#: How many characters say why a result cannot be decoded.
UNREADABLE_TOLD = 500

#: How often tables are tried to be created, since several processes may do so at once.
CREATE_ATTEMPTS = 6


@dataclass(frozen=True)
class StoredResult:
    """A task's result as the backend holds it.

    ``value`` is the return value; for a failed task the exception, or the data from which
    Celery would rebuild it, as they were stored.
    """

    task_id: str
    state: str
    value: Any

    @property
    def is_ready(self) -> bool:
        """Tell whether the task is done, well or badly."""
        return self.state in states.READY_STATES

    @property
    def failed(self) -> bool:
        """Tell whether the task failed or was revoked."""
        return self.state in states.PROPAGATE_STATES


def is_redis(backend: Any) -> bool:
    """Tell whether `backend` is Celery's Redis backend, or made from it (Sentinel)."""
    return isinstance(backend, _class(*_REDIS))


def is_database(backend: Any) -> bool:
    """Tell whether `backend` is Celery's SQLAlchemy backend, or made from it."""
    return isinstance(backend, _class(*_DATABASE))


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
    return any(issubclass(kind, _class(*path)) for path in (_REDIS, _DATABASE))


def takes_chords(backend: Any) -> bool:
    """Tell whether Celery starts a chord on `backend`: RPC and no backend at all refuse them."""
    return _is_stock(backend, "ensure_chords_allowed")


def is_polled(backend: Any) -> bool:
    """Tell whether Celery ends the chords of `backend` by `celery.chord_unlock`."""
    # Others have a way of their own to start a chord, such as a counter.
    return is_database(backend) or (takes_chords(backend) and _is_stock(backend, "apply_chord"))


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


def bounded(app: Celery, seconds: float) -> Any:
    """Return another result backend of `app`, for whom cannot wait.

    What does not answer within some `seconds` is given up, and nothing is tried again.
    """
    stock, url = class_and_url(app)
    kind: Any = type(stock.__name__, (_Bounded, stock), {})
    if not issubclass(kind, _class(*_DATABASE)):
        backend = kind(app=app, url=url)
        if is_redis(backend):
            backend.connparams.update(socket_connect_timeout=seconds, socket_timeout=seconds)
        return backend
    # From 5.7 on it connects when it is made.
    options = dict(app.conf.database_engine_options or {})
    given = options.get("connect_args") or {}
    options["connect_args"] = {**given, **_bound_of_driver(url, seconds)}
    backend = kind(app=app, url=url, engine_options=options)
    # Before 5.7 the app's own options are the stronger ones.
    backend.engine_options = options
    backend.chordguard_sessions = manager = database_module().SessionManager()
    # Else it tries ten times to create Celery's tables; and connects anew for each statement.
    manager.prepared = manager.forked = True
    backend.ResultSession = lambda own=manager: kind.ResultSession(backend, own)
    return backend


class _Bounded:
    """What a result backend does not try again."""

    def ensure(self, operation: Callable[..., T], args: Sequence[Any], **_: Any) -> T:
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


def disconnect(backend: Any) -> None:
    """Give up the connections of a :func:`bounded` backend."""
    if is_redis(backend) and "client" in vars(backend):
        backend.client.connection_pool.disconnect()
    if is_database(backend):
        for engine in backend.chordguard_sessions._engines.values():
            engine.dispose()


def read_results(backend: Any, task_ids: Sequence[str]) -> dict[str, StoredResult]:
    """Return the stored results among `task_ids`, by id, whatever their state.

    One MGET or SELECT for each :data:`CHUNK` ids, retried by the backend's own policy.
    """
    read = _read_from_redis if is_redis(backend) else _read_from_database
    found: dict[str, StoredResult] = {}
    for chunk in chunks(task_ids):
        found.update((result.task_id, result) for result in read(backend, chunk))
    return found


def forget_results(backend: Any, task_ids: Sequence[str]) -> None:
    """Delete stored results of a database `backend`, one DELETE for each :data:`CHUNK` ids."""
    for chunk in chunks(task_ids):
        _delete(backend, backend.task_cls, backend.task_cls.task_id.in_(chunk))


def delete_expired(backend: Any, spared: Any) -> None:
    """Delete the expired results of a database `backend`, as its `cleanup` does, but for some.

    Arguments:
        backend: The result backend.
        spared: A statement that selects the ids of the tasks whose results stay.
    """
    before = datetime.now(timezone.utc).replace(tzinfo=None) - backend.expires
    task, group = backend.task_cls, backend.taskset_cls
    _delete(backend, task, (task.date_done < before) & task.task_id.not_in(spared))
    _delete(backend, group, group.date_done < before)


def ready_states(backend: Any, task_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of those of `task_ids` that are ready, by id."""
    if is_redis(backend):
        return {
            task_id: meta["status"]
            for task_id, meta in read_metas(backend, task_ids)
            if meta["status"] in states.READY_STATES
        }
    found: dict[str, str] = {}
    for chunk in chunks(task_ids):
        task = backend.task_cls
        found.update(
            select(
                backend,
                (task.task_id, task.status),
                task.task_id.in_(chunk) & task.status.in_(sorted(states.READY_STATES)),
            )
        )
    return found


def silence(backend: Any, awaited: Any, results: Sequence[Any]) -> list[Any]:
    """Tell a Redis `backend` not to announce those of `results` that nobody else waits for.

    Arguments:
        backend: The result backend.
        awaited: The result that somebody waits for, which stays announced.
        results: Its parents.

    Returns:
        The results that are not announced any more; :func:`announce` takes them.
    """
    consumer = backend.result_consumer
    silenced = [
        result
        for result in results
        if backend.get_key_for_task(result.id) in consumer.subscribed_to
        and all(waiter is result for waiter in _waiting_for(backend, result.id))
    ]
    keys = {backend.get_key_for_task(result.id) for result in silenced}
    if keys:
        kept = backend.get_key_for_task(awaited.id)
        with _consuming(consumer) as pubsub:
            is_alone = consumer.subscribed_to <= keys | {kept}
            consumer.subscribed_to.difference_update(keys)
            if is_alone and type(consumer.drainer) is _default_drainer():
                # Leave behind, with the connection, all that has been announced so far.
                consumer._pubsub = backend.client.pubsub(ignore_subscribe_messages=True)
                consumer._pubsub.subscribe(kept)
                consumer.subscribed_to.add(kept)
                pubsub.close()
            else:
                pubsub.unsubscribe(*keys)
        # It may have become ready between the two connections.
        for _, meta in read_metas(backend, [awaited.id]):
            consumer.on_state_change(backend.meta_from_decoded(meta), None)
    return silenced


def _default_drainer() -> type:
    """Return the class that reads announcements while somebody waits, not all the time."""
    from celery.backends.asynchronous import Drainer

    drainer: type = Drainer
    return drainer


def announce(backend: Any, results: Sequence[Any]) -> None:
    """Tell a Redis `backend` to announce those of `results` that are not ready yet."""
    consumer = backend.result_consumer
    keys = [backend.get_key_for_task(result.id) for result in results if result._cache is None]
    if keys:
        with _consuming(consumer) as pubsub:
            consumer.subscribed_to.update(keys)
            pubsub.subscribe(*keys)


@contextmanager
def _consuming(consumer: Any) -> Iterator[Any]:
    """Hold the consumer's connection, which from 5.7 on is guarded by a lock."""
    with getattr(consumer, "_locked", nullcontext)(), consumer.reconnect_on_error():
        yield consumer._pubsub


def _waiting_for(backend: Any, task_id: str) -> Iterator[Any]:
    """Yield the result objects that wait to be told of `task_id`."""
    for mapping in backend._pending_results:
        waiter = mapping.get(task_id)
        if isinstance(waiter, (dict, WeakValueDictionary)):  # 5.7: several, by identity
            yield from waiter.values()
        elif waiter is not None:
            yield waiter


def _class(module: str, name: str) -> Any:
    """Return a class; for one whose module was never imported a tuple of none."""
    return getattr(sys.modules.get(module), name, ())


def chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield `items` in slices of :data:`CHUNK`."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def read_metas(backend: Any, task_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, stored meta-data) of those of `task_ids` that a Redis `backend` knows.

    One that cannot be decoded is that of a task that failed with :exc:`.ResultUnreadable`.
    """
    for chunk in chunks(task_ids):
        keys = [backend.get_key_for_task(task_id) for task_id in chunk]
        for task_id, payload in zip(chunk, backend.ensure(backend.mget, (keys,)), strict=True):
            if payload is not None:
                yield task_id, _meta_of(backend, task_id, payload)


def stored_result(backend: Any, task_id: str, payload: Any) -> StoredResult:
    """Return the result that a Redis `backend` stored as `payload`."""
    meta = _meta_of(backend, task_id, payload)
    return StoredResult(task_id, meta["status"], meta["result"])


def _meta_of(backend: Any, task_id: str, payload: Any) -> dict[str, Any]:
    try:
        meta = backend.decode(payload)
        if isinstance(meta["status"], str) and "result" in meta:
            return dict(meta)
        reason = "it is no result"
    except OUTSIDE:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever was stored
        reason = f"{type(exc).__name__}: {exc}"
    lost = unreadable(task_id, reason)
    return {
        "task_id": task_id,
        "status": lost.state,
        "result": lost.value,
        "traceback": None,
        "children": [],
    }


def unreadable(task_id: str, reason: str) -> StoredResult:
    """Return the result of a task whose stored result cannot be decoded, for this `reason`."""
    text = f"the stored result of {task_id} cannot be decoded: {' '.join(reason.split())}"
    return StoredResult(task_id, states.FAILURE, ResultUnreadable(text[:UNREADABLE_TOLD]))


def _read_from_redis(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredResult]:
    for task_id, meta in read_metas(backend, task_ids):
        yield StoredResult(task_id, meta["status"], meta["result"])


def _read_from_database(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredResult]:
    task = backend.task_cls
    # From 5.7 the column holds bytes in the result serializer, before that Python objects, which
    # the column's type decodes as the rows are read: one that it cannot spoils all of them.
    decode = getattr(backend, "_decode_stored_result", None) or _as_it_is
    columns = (task.task_id, task.status, task.result)
    try:
        rows = select(backend, columns, task.task_id.in_(task_ids))
    except (*errors(backend), *OUTSIDE):
        raise
    except Exception as exc:  # noqa: BLE001 - whatever was stored
        if len(task_ids) > 1:
            middle = len(task_ids) // 2
            yield from _read_from_database(backend, task_ids[:middle])
            yield from _read_from_database(backend, task_ids[middle:])
        else:
            yield from _without_value(backend, task_ids, exc)
        return
    for task_id, state, value in rows:
        try:
            result = StoredResult(task_id, state, decode(value))
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever was stored
            yield from _without_value(backend, [task_id], exc)
        else:
            yield result


def _without_value(backend: Any, task_ids: Sequence[str], exc: Exception) -> Iterator[StoredResult]:
    """Yield the results whose values cannot be decoded."""
    task = backend.task_cls
    for task_id, state in select(backend, (task.task_id, task.status), task.task_id.in_(task_ids)):
        is_ready = state in states.READY_STATES
        failed = unreadable(task_id, f"{type(exc).__name__}: {exc}")
        # One that is not done may still store another.
        yield failed if is_ready else StoredResult(task_id, state, None)


def _as_it_is(value: Any) -> Any:
    return value


def select(backend: Any, columns: Iterable[Any], condition: Any) -> list[Any]:
    """Return the rows of a database backend that meet a condition, retried by its own policy."""

    def read_rows() -> list[Any]:
        session = backend.ResultSession()
        with database_module().session_cleanup(session):
            return list(map(tuple, session.query(*columns).filter(condition)))

    return with_retries(backend, read_rows)


def _delete(backend: Any, kind: Any, condition: Any) -> None:
    """Delete the results of a kind that meet a condition, retried by the backend's own policy."""

    def delete_rows() -> None:
        session = backend.ResultSession()
        with database_module().session_cleanup(session):
            session.query(kind).filter(condition).delete(synchronize_session=False)
            session.commit()

    with_retries(backend, delete_rows)


def with_retries(backend: Any, operation: Callable[[], T]) -> T:
    """Run `operation` under the database backend's own retry policy.

    What the database refuses for good is not tried again.
    """
    if isinstance(backend, _Bounded):
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
    cause: Any = getattr(exc, "orig", None)
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
