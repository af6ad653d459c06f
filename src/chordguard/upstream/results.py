"""Stored results, read and deleted many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from celery import states

from ..errors import OUTSIDE, ResultUnreadable
from . import backends, sessions
from .database import with_retries

__all__ = (
    "StoredResult",
    "chunks",
    "delete_expired",
    "forget_results",
    "meta_of",
    "read_metas",
    "read_results",
    "ready_states",
    "select",
    "stored_result",
    "unreadable",
)

#: How many results one statement, or one command, reads.
CHUNK = 500
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

    @property
    def is_ready(self) -> bool:
        """Tell whether the task is done, well or badly."""
        return self.state in states.READY_STATES

    @property
    def failed(self) -> bool:
        """Tell whether the task failed or was revoked."""
        return self.state in states.PROPAGATE_STATES


def read_results(
    backend: Any, task_ids: Sequence[str], at_once: int | None = None
) -> dict[str, StoredResult]:
    """Return the stored results among `task_ids`, by id, whatever their state.

    One MGET, or SELECT, for each :data:`CHUNK` ids, or for `at_once` of them; retried by the
    backend's own policy.
    """
    read = _read_from_redis if backends.is_redis(backend) else _read_from_database
    found: dict[str, StoredResult] = {}
    for chunk in chunks(task_ids, at_once):
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
    if backends.is_redis(backend):
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


def chunks(items: Sequence[str], size: int | None = None) -> Iterator[Sequence[str]]:
    """Yield `items` in slices of a `size`, by default :data:`CHUNK`."""
    size = size or CHUNK
    return (items[start : start + size] for start in range(0, len(items), size))


def read_metas(backend: Any, task_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, stored meta-data) of those of `task_ids` that a Redis `backend` knows.

    One that cannot be decoded is that of a task that failed with :exc:`.ResultUnreadable`.
    """
    for chunk in chunks(task_ids):
        keys = [backend.get_key_for_task(task_id) for task_id in chunk]
        for task_id, payload in zip(chunk, backend.ensure(backend.mget, (keys,)), strict=True):
            if payload is not None:
                yield task_id, meta_of(backend, task_id, payload)


def stored_result(backend: Any, task_id: str, payload: Any) -> StoredResult:
    """Return the result that a Redis `backend` stored as `payload`."""
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
