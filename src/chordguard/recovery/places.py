"""Where tasks are that have no result yet: in a queue of the broker, or with a worker."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from json import loads
from typing import TYPE_CHECKING, Any

from ..errors import CannotTell
from ..upstream.workers import bound_workers, broker_of, inspector, most_answers, redis_command

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("find",)


#: How many messages of a queue are read, at most and at once.
MOST_MESSAGES = 100_000
MESSAGES_AT_ONCE = 1_000


class _Unseen(Exception):
    """Why not all of them can be seen."""


def find(app: Celery, task_ids: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Return where tasks are seen, by id, and why that may not be all there is.

    Whoever is looked for may be on its way, from a queue to a worker or, tried again, back: it is
    looked for in that order, and twice.
    """
    seen: dict[str, str] = {}
    if not task_ids:
        return seen, None
    try:
        with broker_of(app) as connection:
            return _find(app, connection, task_ids)
    except CannotTell as exc:
        return seen, str(exc)
    except Exception as exc:  # noqa: BLE001 - it is told
        return seen, f"the broker cannot be read ({type(exc).__name__})"


def _find(
    app: Celery, connection: Any, task_ids: Collection[str]
) -> tuple[dict[str, str], str | None]:
    seen: dict[str, str] = {}
    why: str | None = None
    # Else the answers of more workers are waited for, for as long as they may take.
    inspect = inspector(app, connection, limit=most_answers(app, connection))
    # Asked twice, a worker that is busy for a moment is not said to be away.
    queues = inspect.active_queues() or inspect.active_queues()
    if not queues:
        return seen, "no worker answered"
    names = {queue["name"] for told in queues.values() for queue in told or ()}
    read: set[int] = set()
    for _ in range(2):
        why = None
        for look in (
            _queued(app, connection, names, set(queues), read),
            _held(inspector(app, connection, list(queues))),
        ):
            try:
                seen.update((id_, place) for id_, place in look if id_ in task_ids)
            except _Unseen as exc:
                why = why or str(exc)
        if all(task_id in seen for task_id in task_ids):
            return seen, None
        if why:
            break
    return seen, why


def _held(inspect: Any) -> Iterator[tuple[str, str]]:
    """Yield (id, place) of the tasks that workers have."""
    for what, ask in (
        ("is scheduled", inspect.scheduled),
        ("is reserved", inspect.reserved),
        ("runs", inspect.active),
    ):
        answers = ask() or {}
        for worker, tasks in answers.items():
            for task in tasks or ():
                yield task.get("request", task).get("id"), f"{what} on {worker}"
        silent = sorted(set(inspect.destination) - answers.keys())
        if silent:
            raise _Unseen(f"{', '.join(silent)} did not answer")


def _queued(
    app: Celery, connection: Any, names: set[str], workers: set[str], read: set[int]
) -> Iterator[tuple[str, str]]:
    """Yield (id, place) of the messages that nobody has acknowledged, where they can be read.

    Those whose hash is in `read` were looked at before; it is added to.
    """
    driver = connection.transport.driver_type
    if driver != "redis":
        raise _Unseen(f"the queues of {driver} cannot be read")
    # One of its own: on the other the answers of workers are waited for.
    channel = connection.channel()
    for name in sorted(names):
        for priority in channel.priority_steps:
            place = f"waits in {name}"
            for message in _messages(channel, channel._q_for_pri(name, priority), name):
                if (mark := hash(message)) not in read:
                    read.add(mark)
                    yield loads(message)["headers"].get("id"), place
    for entry in redis_command(channel, "HVALS", channel.unacked_key):
        yield loads(entry)[0]["headers"].get("id"), "was handed to a worker"
    # Who is bound hears what workers are told, but a busy one does not answer where it has no
    # process for its tasks, as in the pool "solo".
    silent = {name for name in bound_workers(app, channel) if name not in workers}
    if silent:
        raise _Unseen(f"{', '.join(sorted(silent))} did not answer: busy, or killed")


def _messages(channel: Any, queue: str, name: str) -> Iterator[Any]:
    length = redis_command(channel, "LLEN", queue)
    if length > MOST_MESSAGES:
        raise _Unseen(f"{name} holds {length} messages, more than are read")
    # From where they are put to where they are taken: those that come meanwhile only move others
    # on, to where they are read again.
    for start in range(0, length, MESSAGES_AT_ONCE):
        yield from redis_command(channel, "LRANGE", queue, start, start + MESSAGES_AT_ONCE - 1)
