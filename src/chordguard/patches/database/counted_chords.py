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
from celery.utils.time import maybe_timedelta
from kombu.exceptions import EncodeError

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_5, celery_5_7
from ...errors import OUTSIDE, ChordEnded
from ...ledger.access import ledger_beside, ledger_beside_on
from ...ledger.checked import body_of
from ...ledger.model import LONGEST_SECONDS
from ...ledger.packing import header_of
from ...ledger.tallies import ENDED, End
from ...lifecycle import counting, ending, safety_net, starting
from ...lifecycle.polling import Poll
from ...log import is_reported, warn_once
from ...policy import timeout_of
from ...recovery.checkup import checkup
from ...recovery.evidence import examine
from ...upstream import stores
from ...upstream.results import delete_expired, read_results
from ...upstream.signatures import task_ids, waiting_for

logger = logging.getLogger("chordguard")

patch = Patch(
    "counted_chords",
    Defect("A9", "SQL: the error of a failed chord names no member"),
    Defect("B7", "SQL: the worker of a member is killed: the chord hangs"),
    Defect("B9", "SQL: a header task with ignore_result: the chord hangs"),
    Defect("C4", "SQL: bodies start up to a second late, polling keeps workers and database busy"),
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


@patch.wraps(
    "celery.backends.database",
    "DatabaseBackend.apply_chord",
    takes={"header_result_args": 0, "body": 1},
)
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    group_id, results = header_result_args
    ledger = ledger_beside(backend)
    if ledger is None:
        return wrapped(*args, **kwargs)
    run = starting.run_of(group_id) if starting.is_lazy(results) else None
    try:
        starting.open_chord(ledger, group_id, results, body)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chord %s is polled: writing it to the ledger failed", group_id)
        return wrapped(*args, **kwargs)
    options = {name: kwargs[name] for name in kwargs if name not in ("header_result_args", "body")}
    if run is None:
        safety_net.send_unlock(backend, group_id, results, body, options)
    else:
        run.header.tasks = starting.LazyTasks(run.header)
        run.start = _Start(ledger, run.header.tasks, body, options)
    return None


@patch.wraps("celery.backends.database", "DatabaseBackend.set_chord_size", takes={"group_id": 0})
def set_chord_size(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, group_id: Any) -> Any:
    run = starting.run_of(group_id)
    if run is None or run.start is None:
        return wrapped(*args, **kwargs)
    start, run.start = run.start, None
    # The last member is about to be sent, and all have been taken.
    results = start.tasks.results
    try:
        start.ledger.set_header(group_id, header_of(results))
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chord %s may end late: writing its members to the ledger failed", group_id)
    safety_net.send_unlock(backend, group_id, results, start.body, start.options)
    return None


@patch.wraps(
    "celery.backends.database",
    "DatabaseBackend.store_result",
    takes={"task_id": 0, "state": 2, "request": 4},
)
def store_result(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, task_id: Any, state: Any, request: Any
) -> Any:
    is_part = state in states.READY_STATES and _is_member(request) and request.id == task_id
    # What is counted in another store is counted when the part is returned.
    is_here = is_part and not stores.has_store(backend.app)
    ledger = ledger_beside(backend) if is_here else None
    if ledger is None:
        return wrapped(*args, **kwargs)
    with ledger.asking(request.group) as token:
        part = counting.StoredPart(ledger, request, state, token)
        stored = _store_and_count(part, wrapped, args, kwargs)
        if part.claim is not None:
            ending.end_from_part(ledger, part.claim, request.chord)
        return stored


def _store_and_count(part: counting.StoredPart, wrapped: Any, args: Any, kwargs: Any) -> Any:
    request = part.request
    counting.about_to_store(request, part)
    try:
        return wrapped(*args, **kwargs)
    except (EncodeError, *OUTSIDE):
        raise
    except Exception:  # noqa: BLE001 - it is logged
        # A result is worth more than its count.
        warn_once(
            "Could not store and count the result of %s at once; storing it first", request.id
        )
        counting.about_to_store(request, None)
        return wrapped(*args, **kwargs)
    finally:
        if not part.is_counted:
            counting.about_to_store(request, None)


@patch.wraps(
    "celery.backends.database",
    "DatabaseBackend.on_chord_part_return",
    takes={"request": 0, "state": 1, "result": 2},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    wrapped(*args, **kwargs)
    if not _is_member(request) or counting.is_counted(request):
        return
    ledger = ledger_beside(backend)
    if ledger is not None:
        counting.count(ledger, request, state, result)
        if not ledger.may_count():
            # The ledger, which refused the part, did not keep its result.
            wrapped(*args, **kwargs)


@patch.wraps(
    "celery.backends.database", "DatabaseBackend.add_to_chord", takes={"chord_id": 0, "result": 1}
)
def add_to_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, chord_id: Any, result: Any
) -> Any:
    ledger = ledger_beside(backend)
    if ledger is None:
        return wrapped(*args, **kwargs)
    if not ledger.add(chord_id, header_of([result])):
        raise ChordEnded(
            f"chord {chord_id} cannot take another member: it has ended, or it was started by a "
            "process that does not count chords; add members while one of its own still runs"
        )
    return None


@patch.wraps("celery.backends.database", "DatabaseBackend.cleanup", until=celery_5_7)
@patch.wraps("celery.backends.database", "DatabaseBackend._cleanup", since=celery_5_7)
def cleanup(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    ledger = ledger_beside(backend) if backend.expires else None
    if ledger is None or not ledger.is_there():
        # Where its tables were dropped there are no live chords.
        wrapped(*args, **kwargs)
        return
    delete_expired(backend, ledger.live_members())
    try:
        expires = maybe_timedelta(backend.expires).total_seconds()
        before = time.time() - 2 * expires
        ledger.forget_abandoned(before, partial(_is_settled_later, backend.app))
        ledger.forget_ended(time.time() - expires)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Could not remove abandoned chords from the ledger")


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
    ledger_beside(backend)


@patch.wraps_task("celery.chord_unlock", "apply_async")
def send_unlock(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    given = args[1] if len(args) > 1 else kwargs.get("kwargs")
    if given and safety_net.UNLOCK_ID in given:
        kwargs = {**kwargs, "task_id": given.pop(safety_net.UNLOCK_ID)}
    return wrapped(*args, **kwargs)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    if task.request.id != safety_net.unlock_id(poll.group_id):
        return wrapped(*args, **kwargs)
    try:
        delay, is_polled = _look(poll)
    except Exception:
        # Polled like one that is not counted, it might be ended twice.
        logger.warning(
            "Could not check chord %s; its safety net will retry", poll.group_id, exc_info=True
        )
        delay, is_polled = safety_net.first_delay(task.app, poll.body), False
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
        pace = safety_net.next_delay(poll.app, poll.retries, poll.body)
    ledger = ledger_beside_on(poll.app.backend, asked=False)
    try:
        if ledger is not None:
            return _check(ledger, poll, pace), False
    except Exception as exc:
        if not is_reported(exc):
            raise
    return _look_without_rights(poll, pace)


def _check(ledger: Any, poll: Poll, pace: float) -> float | None:
    """Check the chord, whose poller knows its members and its body; the ledger may not."""
    found = examine(ledger, poll.group_id, header=poll.header.header, body=poll.body)
    return checkup(ledger, found, settlement=poll.why_settle(0.0), pace=pace)


def _look_without_rights(poll: Poll, pace: float) -> tuple[float | None, bool]:
    """Look at a chord that is in the ledger, and that nobody can claim here.

    Other workers may have the rights, or get them back: a chord that they are ending is theirs, and
    from a row of the body's result they see that it was ended here.
    """
    backend = poll.app.backend
    ledger = ledger_beside(backend, asked=False, is_read=True)
    if ledger is not None:
        try:
            record = ledger.read(poll.group_id)
        except Exception as exc:
            if not is_reported(exc):
                raise
        else:
            if record is None:
                return None, False
            if record.claimed_until > time.time():
                return pace, False
    if not poll.header.ready():
        return None, True
    body_ids = list(task_ids(waiting_for(poll.body)))
    rows = read_results(backend, body_ids).values()
    if any(row.state != states.PENDING for row in rows):
        _close(poll)
        return None, False
    for body_id in body_ids:
        backend.store_result(body_id, None, states.PENDING)
    return None, True


def _close(poll: Poll) -> None:
    """Forget a chord that was ended without the ledger, if that is allowed."""
    ledger = ledger_beside(poll.app.backend, asked=False, is_read=True)
    if ledger is not None:
        with suppress(Exception):
            ledger.close(poll.group_id, End(ENDED))


def _is_member(request: Any) -> bool:
    return request is not None and bool(request.chord and request.group and request.id)
