"""A chord on a SQL backend is polled: its body starts late, and all chords cost all the time.

`Backend.apply_chord` starts `celery.chord_unlock`, which looks every second, reads each member's
row on its own and sends the whole header again in each retry. Here the chord is opened in the
ledger where it starts, `on_chord_part_return` (empty in the database backend) counts its parts,
and the last one ends it. https://github.com/celery/celery/issues/6685
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import states
from kombu.exceptions import EncodeError

from ... import backends, completion, counting, starting, watchdog
from ..._patch import Patch, celery_5_5
from ...errors import OUTSIDE
from ...ledger import rights
from ...ledger.checked import body_of
from ...ledger.model import LONGEST_SECONDS
from ...policy import timeout_of
from ...polling import Poll

logger = logging.getLogger("chordguard")

patch = Patch(
    name="counted_chords",
    defects={
        "A9": "SQL: the error of a failed chord names no member",
        "B7": "SQL: the worker of a member is killed: the chord hangs",
        "B9": "SQL: a header task with ignore_result: the chord hangs",
        "C4": "SQL: bodies start up to a second late, polling keeps workers and database busy",
    },
    driver="sqlalchemy",
    needs_ledger=True,
)


@dataclass
class _Start:
    """A chord whose header is a generator: its members are known when the last is sent."""

    ledger: Any
    tasks: starting.LazyTasks
    body: Any
    options: dict[str, Any]


@patch.wraps("celery.canvas", "_chord.run")
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    with starting.running(args[0] if args else kwargs["header"]):
        return wrapped(*args, **kwargs)


@patch.wraps("celery.backends.database", "DatabaseBackend.apply_chord")
def apply_chord(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    (group_id, results), body, options = _arguments_of_apply(*args, **kwargs)
    ledger = counting.ledger_of(backend)
    if ledger is None:
        return wrapped(*args, **kwargs)
    run = starting.run_of(group_id) if starting.is_lazy(results) else None
    try:
        starting.open_chord(ledger, group_id, results, body)
    except Exception:  # noqa: BLE001 - it is logged
        counting.warn_once("Chord %s is polled: it cannot be counted", group_id)
        return wrapped(*args, **kwargs)
    if run is None:
        counting.send_unlock(backend, group_id, results, body, options)
    else:
        run.header.tasks = starting.LazyTasks(run.header)
        run.start = _Start(ledger, run.header.tasks, body, options)
    return None


@patch.wraps("celery.backends.database", "DatabaseBackend.set_chord_size")
def set_chord_size(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    group_id = args[0] if args else kwargs["group_id"]
    run = starting.run_of(group_id)
    if run is None or run.start is None:
        return wrapped(*args, **kwargs)
    start, run.start = run.start, None
    # The last member is about to be sent, and all have been taken.
    results = start.tasks.results
    try:
        start.ledger.set_header(group_id, completion.header_of(results))
    except Exception:  # noqa: BLE001 - it is logged
        counting.warn_once("Chord %s may end late: its members are not in the ledger", group_id)
    counting.send_unlock(backend, group_id, results, start.body, start.options)
    return None


@patch.wraps("celery.backends.database", "DatabaseBackend.store_result")
def store_result(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    task_id, state, request = _arguments_of_store(*args, **kwargs)
    is_part = state in states.READY_STATES and _is_member(request) and request.id == task_id
    ledger = counting.ledger_of(backend) if is_part else None
    if ledger is None:
        return wrapped(*args, **kwargs)
    with ledger.asking(request.group) as token:
        part = counting.StoredPart(ledger, request, token)
        stored = _store_and_count(part, wrapped, args, kwargs)
        if part.claim is not None:
            counting.end_from_part(ledger, part.claim, request.chord)
        return stored


def _store_and_count(part: counting.StoredPart, wrapped: Any, args: Any, kwargs: Any) -> Any:
    reset = counting.being_stored.set(part)
    try:
        stored = wrapped(*args, **kwargs)
    except (EncodeError, *OUTSIDE):
        raise
    except Exception:  # noqa: BLE001 - it is logged
        # A result is worth more than its count.
        counting.warn_once("Part %s is stored before it is counted", part.key[1])
        counting.being_stored.set(None)
        return wrapped(*args, **kwargs)
    finally:
        counting.being_stored.reset(reset)
    if part.is_counted:
        counting.counted.set(part.key)
    return stored


@patch.wraps("celery.backends.database", "DatabaseBackend.on_chord_part_return")
def on_chord_part_return(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    wrapped(*args, **kwargs)
    request, state, result = _arguments_of_part(*args, **kwargs)
    if not _is_member(request) or counting.counted.get() == (request.group, request.id):
        return
    ledger = counting.ledger_of(backend)
    if ledger is not None:
        counting.count(ledger, request, state, result)
        if not ledger.may_count():
            # The ledger, which refused the part, did not keep its result.
            wrapped(*args, **kwargs)


@patch.wraps("celery.backends.database", "DatabaseBackend.add_to_chord")
def add_to_chord(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    group_id, result = _arguments_of_add(*args, **kwargs)
    ledger = counting.ledger_of(backend)
    if ledger is None:
        return wrapped(*args, **kwargs)
    if not ledger.add(group_id, completion.header_of([result])):
        raise RuntimeError(
            f"chord {group_id} cannot take another member: it has ended, or it was started by a "
            "process that does not count chords; add members while one of its own still runs"
        )
    return None


@patch.wraps("celery.backends.database", "DatabaseBackend.cleanup")
def cleanup(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    ledger = counting.ledger_of(backend) if backend.expires else None
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    backends.delete_expired(backend, ledger.live_members())
    try:
        before = time.time() - 2 * backend.expires.total_seconds()
        ledger.forget_abandoned(before, partial(_is_settled_later, backend.app))
    except Exception:  # noqa: BLE001 - it is logged
        counting.warn_once("Abandoned chords are not forgotten")


def _is_settled_later(app: Any, record: Any) -> bool:
    """Tell whether a chord without progress for long may live on, since its own timeout is long."""
    try:
        timeout = timeout_of(app, body_of(app, record.body)[0] if record.body else None)
    except Exception:  # noqa: BLE001 - one that cannot be read has no say
        return False
    seconds = LONGEST_SECONDS if timeout is None else 2 * timeout
    return time.time() - float(record.progressed) < seconds


@patch.wraps("celery.backends.database", "DatabaseBackend._create_tables", since=celery_5_5)
def create_tables(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    wrapped(*args, **kwargs)
    counting.ledger_of(backend)


@patch.wraps_task("celery.chord_unlock", "apply_async")
def send_unlock(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    given = args[1] if len(args) > 1 else kwargs.get("kwargs")
    if given and counting.UNLOCK_ID in given:
        kwargs = {**kwargs, "task_id": given.pop(counting.UNLOCK_ID)}
    return wrapped(*args, **kwargs)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    if task.request.id != counting.unlock_id(poll.group_id):
        return wrapped(*args, **kwargs)
    try:
        delay, is_polled = _look(poll)
    except Exception:
        # Polled like one that is not counted, it might be ended twice.
        logger.warning("Chord %s is looked at later", poll.group_id, exc_info=True)
        delay, is_polled = counting.first_delay(task.app, poll.body), False
    if is_polled:
        ended = wrapped(*args, **kwargs)
        _close(poll)
        return ended
    if delay is not None:
        # Beyond its bound it waits for somebody else who ends the chord.
        bound = None if poll.bound is None else max(poll.bound, poll.retries + 1)
        raise task.retry(countdown=delay, max_retries=bound, **poll.retry_options)
    return None


def _look(poll: Poll) -> tuple[float | None, bool]:
    """Look at the chord for its safety net.

    Returns:
        The seconds until the next look, if any; and whether the chord is polled instead.
    """
    pace = poll.asked_delay
    if pace is None:
        pace = counting.next_delay(poll.app, poll.retries, poll.body)
    ledger = counting.ledger_on(poll.app.backend, asked=False)
    try:
        if ledger is not None:
            delay = watchdog.look(
                ledger,
                poll.group_id,
                header=poll.header.header,
                body=poll.body,
                why_settle=poll.why_settle(0.0),
                pace=pace,
            )
            return delay, False
    except Exception as exc:
        if not rights.is_told(exc):
            raise
    return _look_without_rights(poll, pace)


def _look_without_rights(poll: Poll, pace: float) -> tuple[float | None, bool]:
    """Look at a chord that is in the ledger, and that nobody can claim here.

    Other workers may have the rights, or get them back: a chord that they are ending is theirs, and
    from a row of the body's result they see that it was ended here.
    """
    backend = poll.app.backend
    ledger = counting.ledger_of(backend, asked=False, is_read=True)
    if ledger is not None:
        try:
            record = ledger.read(poll.group_id)
        except Exception as exc:
            if not rights.is_told(exc):
                raise
        else:
            if record is None:
                return None, False
            if record.claimed_until > time.time():
                return pace, False
    if not poll.header.ready():
        return None, True
    body_ids = list(completion.task_ids(completion.waiting_for(poll.body)))
    rows = backends.read_results(backend, body_ids).values()
    if any(row.state != states.PENDING for row in rows):
        _close(poll)
        return None, False
    for body_id in body_ids:
        backend.store_result(body_id, None, states.PENDING)
    return None, True


def _close(poll: Poll) -> None:
    """Forget a chord that was ended without the ledger, if that is allowed."""
    ledger = counting.ledger_of(poll.app.backend, asked=False, is_read=True)
    if ledger is not None:
        with suppress(Exception):
            ledger.close(poll.group_id)


def _is_member(request: Any) -> bool:
    return request is not None and bool(request.chord and request.group and request.id)


def _arguments_of_apply(
    header_result_args: Any, body: Any, **options: Any
) -> tuple[Any, Any, dict[str, Any]]:
    return header_result_args, body, options


def _arguments_of_store(
    task_id: Any, result: Any, state: Any, traceback: Any = None, request: Any = None, **_: Any
) -> tuple[Any, Any, Any]:
    return task_id, state, request


def _arguments_of_part(
    request: Any, state: Any, result: Any = None, **_: Any
) -> tuple[Any, Any, Any]:
    return request, state, result


def _arguments_of_add(chord_id: Any = None, result: Any = None, **_: Any) -> tuple[Any, Any]:
    return chord_id, result
