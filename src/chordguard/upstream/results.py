"""Stored results, read and deleted many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeVar

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend
from kombu.exceptions import SerializationError, SerializerNotInstalled

from ..errors import OUTSIDE, ResultUnreadable
from . import backends, sessions
from .database import with_retries

__all__ = (
    "Results",
    "StoredResult",
    "chunks",
    "delete_expired",
    "forget_results",
    "meta_of",
    "read_metas",
    "read_results",
    "ready_results",
    "ready_states",
    "select",
    "stored_result",
    "unreadable",
)

T = TypeVar("T")

#: How many results one statement, or one command, reads.
CHUNK = 500
#: Stands in the place of the traceback of a result that is stored for its chord alone.
KEPT_FOR_CHORD = "chordguard: kept until its chord ends"
#: Seconds after which what cannot be decoded is read again: a file may just be written.
READ_AGAIN_AFTER = 0.05
#: How many characters say why a result cannot be decoded.
UNREADABLE_TOLD = 500


class StoredResult(NamedTuple):
    """A task's result as the backend holds it.

    ``value`` is the return value; for a failed task the exception, or the data from which
    Celery would rebuild it, as they were stored.
    """

    task_id: str
    state: str
    value: Any
    #: Whether it is stored for its chord alone.
    is_spare: bool = False

    @property
    def is_ready(self) -> bool:
        """Tell whether the task is done, well or badly."""
        return self.state in states.READY_STATES

    @property
    def failed(self) -> bool:
        """Tell whether the task failed or was revoked."""
        return self.state in states.PROPAGATE_STATES


class Results(Mapping[str, StoredResult]):
    """The results of tasks, by id, in the order in which they were added.

    Of a task that succeeded only its value is kept: a chord may have many thousands of them.
    """

    def __init__(self, results: Iterable[StoredResult] = ()) -> None:
        self._kept: dict[str, Any] = {}
        #: The ids of those that did not succeed.
        self._others: set[str] = set()
        #: The ids of those that are stored for their chord alone.
        self.spare: list[str] = []
        for result in results:
            self.add(*result)

    def add(self, task_id: str, state: str, value: Any, is_spare: bool = False) -> None:
        """Add a result, which takes the place of one that is there."""
        if is_spare:
            self.spare.append(task_id)
        if state == states.SUCCESS:
            self._kept[task_id] = value
            self._others.discard(task_id)
        else:
            self._kept[task_id] = StoredResult(task_id, state, value)
            self._others.add(task_id)

    def values_of(self, ids: Sequence[Any]) -> list[Any] | None:
        """Return the values of tasks, nested as their ids are; None: not all have succeeded."""
        if self._others:
            return None
        kept = self._kept
        try:
            return [kept[id_] if isinstance(id_, str) else self._nested(id_) for id_ in ids]
        except KeyError:
            return None

    def _nested(self, ids: Sequence[Any]) -> list[Any]:
        values = self.values_of(ids)
        if values is None:
            raise KeyError
        return values

    def have_succeeded(self, task_ids: Iterable[str]) -> bool:
        """Tell whether all of `task_ids` have succeeded."""
        return not self._others and all(map(self._kept.__contains__, task_ids))

    def __getitem__(self, task_id: str) -> StoredResult:
        kept = self._kept[task_id]
        if task_id in self._others:
            result: StoredResult = kept
            return result
        return StoredResult(task_id, states.SUCCESS, kept)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def read_results(backend: Any, task_ids: Sequence[str], at_once: int | None = None) -> Results:
    """Return the stored results among `task_ids`, by id, whatever their state.

    None are found where they cannot be read (see `backends.can_be_read`). One MGET or SELECT for
    each :data:`CHUNK` ids, or for `at_once` of them, retried by the backend's own policy; a read
    for each where the backend has nothing else.
    """
    if not backends.can_be_read(backend):
        return Results()
    read = _read_from_others
    if backends.is_database(backend):
        read = _read_from_database
    elif backends.is_django(backend):
        read = _read_from_django
    return Results(result for chunk in chunks(task_ids, at_once) for result in read(backend, chunk))


def ready_results(backend: Any, task_ids: Sequence[str], at_once: int | None = None) -> Results:
    """Return the stored results among `task_ids` of tasks that are done, as `read_results`."""
    results = read_results(backend, task_ids, at_once)
    return Results(result for result in results.values() if result.is_ready)


def forget_results(backend: Any, task_ids: Sequence[str]) -> None:
    """Delete stored results; from a database with one DELETE for each :data:`CHUNK` ids."""
    if not backends.is_database(backend):
        for task_id in task_ids:
            backend.forget(task_id)
        return
    for chunk in chunks(task_ids):
        _delete(backend, backend.task_cls, backend.task_cls.task_id.in_(chunk))


def delete_expired(backend: Any, spared: Any) -> None:
    """Delete the expired results of a database `backend`, as its `cleanup` does, but for some.

    Arguments:
        backend: The result backend.
        spared: A statement that selects the ids of the tasks whose results stay.
    """
    if backends.is_django(backend):
        from . import django

        django.delete_expired(backend, spared)
        return
    before = datetime.now(timezone.utc).replace(tzinfo=None) - backend.expires
    task, group = backend.task_cls, backend.taskset_cls
    _delete(backend, task, (task.date_done < before) & task.task_id.not_in(spared))
    _delete(backend, group, group.date_done < before)


def ready_states(backend: Any, task_ids: Sequence[str]) -> dict[str, str]:
    """Return the states of those of `task_ids` that are ready, by id, where they can be read."""
    if not backends.can_be_read(backend):
        return {}
    if not backends.keeps_rows(backend):
        return {
            task_id: meta["status"]
            for task_id, meta in read_metas(backend, task_ids)
            if meta["status"] in states.READY_STATES
        }
    found: dict[str, str] = {}
    if backends.is_django(backend):
        from . import django

        for chunk in chunks(task_ids):
            found.update(django.ready_rows(backend, chunk))
        return found
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


def chunks(items: Sequence[T], size: int | None = None) -> Iterator[Sequence[T]]:
    """Yield `items` in slices of a `size`, by default :data:`CHUNK`."""
    size = size or CHUNK
    return (items[start : start + size] for start in range(0, len(items), size))


def read_metas(backend: Any, task_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, stored meta-data) of those of `task_ids` that a `backend`, no database, knows.

    One that cannot be decoded is that of a task that failed with :exc:`.ResultUnreadable`.
    """
    read = _read_by_keys if isinstance(backend, BaseKeyValueStoreBackend) else _read_one_by_one
    for chunk in chunks(task_ids):
        yield from read(backend, chunk)


def _read_by_keys(backend: Any, task_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for task_id, payload in zip(task_ids, _payloads(backend, task_ids), strict=True):
        if not payload:
            continue
        meta = meta_of(backend, task_id, payload)
        if isinstance(meta["result"], ResultUnreadable) and not backends.is_redis(backend):
            time.sleep(READ_AGAIN_AFTER)
            meta = meta_of(backend, task_id, _get(backend, task_id))
        yield task_id, meta


def _payloads(backend: Any, task_ids: Sequence[str]) -> Sequence[Any]:
    """Return what a key-value store has for tasks, read together where it can."""
    keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
    if backends.is_redis(backend):
        found: Sequence[Any] = backend.ensure(backend.mget, (keys,))
        return found
    if type(backend).mget is BaseKeyValueStoreBackend.mget:
        return [_get(backend, task_id) for task_id in task_ids]

    def read() -> list[Any]:
        found = backend.mget(keys)
        if not hasattr(found, "items"):
            return list(found)
        by_id = {backend._strip_prefix(key): payload for key, payload in found.items()}
        return list(map(by_id.get, task_ids))

    return _with_retries(backend, read)


def _get(backend: Any, task_id: str) -> Any:
    return _with_retries(backend, lambda: backend.get(backend.get_key_for_task(task_id)))


def _with_retries(backend: Any, operation: Callable[[], T]) -> T:
    """Run an `operation` of reading under the backend's own retry policy, if it has one."""
    # From 5.7 on; before that Celery does not retry it.
    ensure = getattr(backend, "_ensure_retryable", None)
    result: T = operation() if ensure is None else ensure(operation)
    return result


def _read_one_by_one(backend: Any, task_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for task_id in task_ids:
        try:
            meta = backend.get_task_meta(task_id, cache=False)
        except (SerializationError, SerializerNotInstalled) as exc:
            meta = _unreadable_meta(task_id, f"{type(exc).__name__}: {exc}")
        if meta["status"] != states.PENDING:
            yield task_id, meta


def stored_result(backend: Any, task_id: str, payload: Any) -> StoredResult:
    """Return the result that a key-value `backend` stored as `payload`."""
    meta = meta_of(backend, task_id, payload)
    return StoredResult(task_id, meta["status"], meta["result"])


def meta_of(backend: Any, task_id: str, payload: Any) -> dict[str, Any]:
    """Return the meta-data that a Redis `backend` stored, or announced, as `payload`."""
    try:
        meta = backend.decode(payload)
        if isinstance(meta["status"], str) and "result" in meta:
            return dict(meta)
        reason = "it is no result"
    except OUTSIDE:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever was stored
        reason = f"{type(exc).__name__}: {exc}"
    return _unreadable_meta(task_id, reason)


def _unreadable_meta(task_id: str, reason: str) -> dict[str, Any]:
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


def _read_from_others(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredResult]:
    for task_id, meta in read_metas(backend, task_ids):
        is_spare = meta.get("traceback") == KEPT_FOR_CHORD
        yield StoredResult(task_id, meta["status"], meta["result"], is_spare)


def _read_from_django(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredResult]:
    from . import django

    for task_id, state, value, exc in django.decoded_rows(backend, task_ids):
        if exc is not None and state in states.READY_STATES:
            yield unreadable(task_id, f"{type(exc).__name__}: {exc}")
        else:
            # One that is not done may still store another.
            yield StoredResult(task_id, state, value)


def _read_from_database(backend: Any, task_ids: Sequence[str]) -> Iterator[StoredResult]:
    task = backend.task_cls
    # From 5.7 the column holds bytes in the result serializer, before that Python objects, which
    # the column's type decodes as the rows are read: one that it cannot spoils all of them.
    decode = getattr(backend, "_decode_stored_result", None) or _as_it_is
    columns = (task.task_id, task.status, task.result)
    try:
        rows = select(backend, columns, task.task_id.in_(task_ids))
    except (*backends.errors(backend), *OUTSIDE):
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
        with sessions.session(backend) as session:
            return list(map(tuple, session.query(*columns).filter(condition)))

    return with_retries(backend, read_rows)


def _delete(backend: Any, kind: Any, condition: Any) -> None:
    """Delete the results of a kind that meet a condition, retried by the backend's own policy."""

    def delete_rows() -> None:
        with sessions.session(backend) as session:
            session.query(kind).filter(condition).delete(synchronize_session=False)
            session.commit()

    with_retries(backend, delete_rows)
