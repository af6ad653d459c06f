"""Chords that are counted: opened when they start, ended by their last part.

`celery.chord_unlock` stays as a late and slow safety net. A patched worker answers it from the
ledger; it finds the parts that nobody counted, such as those of a worker without the patches.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from celery import states
from celery.canvas import maybe_signature
from kombu.utils.encoding import ensure_bytes

from . import backends, completion, settings
from .backends import StoredResult
from .ledger.model import Claim, Part
from .policy import Policy

if TYPE_CHECKING:
    from celery import Celery

    from .ledger.database import DatabaseLedger
    from .polling import Poll

__all__ = (
    "StoredPart",
    "answer",
    "being_stored",
    "end",
    "first_delay",
    "ledger_of",
    "next_delay",
    "part_of",
    "unlock_id",
    "warn_once",
)

logger = logging.getLogger("chordguard")

#: The longest time, in seconds, between two looks of the safety net.
SLOWEST = 300.0

_UNLOCK = UUID("b3c1cf9c-6b5c-4a8e-9a55-7d0f0e2f6a10")


def ledger_of(backend: Any, *, asked: bool = True) -> DatabaseLedger | None:
    """Return the ledger of a database `backend`; None where there is none.

    `asked` is whether the setting ``chord_ledger`` decides.
    """
    # It needs SQLAlchemy, without which there is no such backend.
    from .ledger.database import DatabaseLedger

    if asked and not settings.get(backend.app, "chord_ledger"):
        return None
    try:
        ledger = DatabaseLedger(backend)
        return ledger if ledger.is_usable() else None
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chords are polled for now: the ledger cannot be reached")
        return None


_warned: set[tuple[str, type | None]] = set()


def warn_once(message: str, *args: Any) -> None:
    """Log the exception that is being handled, each kind once in a process."""
    kind = sys.exc_info()[0]
    if (message, kind) not in _warned:
        _warned.add((message, kind))
        logger.warning("%s (said once)", message % args, exc_info=True)


class StoredPart:
    """A part whose result is about to be stored, and can be counted in the same transaction."""

    def __init__(self, ledger: DatabaseLedger, request: Any) -> None:
        self.ledger = ledger
        self.key = (request.group, request.id)
        self.is_counted = False
        self.claim: Claim | None = None

    def store(self, statement: Any, values: dict[str, Any]) -> None:
        """Execute the statement that stores the result, and count the part."""
        group_id, task_id = self.key
        self.claim = self.ledger.store_and_count(group_id, Part(task_id), (statement, values))
        self.is_counted = True


#: The part that the store under way is about.
being_stored: ContextVar[StoredPart | None] = ContextVar("chordguard_being_stored", default=None)


def unlock_id(group_id: str) -> str:
    """Return the id of the `celery.chord_unlock` of a counted chord.

    It says that the chord is counted, and lets the poller of a chord be found.
    """
    return str(uuid5(_UNLOCK, group_id))


def first_delay(app: Celery, body: Any) -> float:
    """Return the seconds before the safety net looks at a chord for the first time."""
    delay = settings.seconds(app, "chord_unlock_first_delay")
    timeout = Policy.of(app, body).timeout
    return delay if timeout is None else min(delay, timeout)


def next_delay(app: Celery, retries: int, body: Any = None) -> float:
    """Return the seconds between look number `retries` (from 0) of the safety net and the next.

    They double with each look, up to :data:`SLOWEST`.
    """
    return min(SLOWEST, max(1.0, first_delay(app, body)) * 2.0 ** min(retries, 16))


def part_of(backend: Any, request: Any, state: str, result: Any) -> Part:
    """Return the part that a done task returns; it brings along a result that is not stored."""
    task = backend.app.tasks.get(request.task)
    ignored = getattr(request, "ignore_result", None) or getattr(task, "ignore_result", False)
    if not ignored:
        return Part(request.id)
    payload = backend.encode([state, backend.encode_result(result, state)])
    return Part(request.id, ensure_bytes(payload))  # type: ignore[no-untyped-call]


def end(
    app: Celery,
    ledger: DatabaseLedger,
    claim: Claim,
    body: Mapping[str, Any],
    *,
    settled: str | None = None,
) -> bool:
    """End a chord that was claimed, and forget it.

    Arguments:
        app: The app whose worker ends the chord.
        ledger: Where the chord is counted.
        claim: The claim on it.
        body: Its body, which may be data.
        settled: Why it ends although members may be missing; they count as lost then.

    Returns:
        False when the result of a member is not stored although it was counted: the claim is
        given back, the safety net looks again.
    """
    results = _results_of(ledger, claim)
    if settled is None and any(
        task_id not in results for task_id in completion.leaf_ids(claim.header)
    ):
        logger.warning("Chord %s: results of its members are not there yet", claim.group_id)
        ledger.release(claim)
        return False
    completion.finish(
        app,
        maybe_signature(body, app=app),
        claim.header,
        results,
        Policy.of(app, body),
        settled=settled and f"Chord {claim.group_id} was settled {settled}",
    )
    ledger.close(claim.group_id)
    return True


def answer(poll: Poll, ledger: DatabaseLedger) -> float | None:
    """Look at a counted chord for its safety net, and end it if nobody else will.

    Returns:
        The seconds until the next look; None: the chord has ended.
    """
    now = time.time()
    delay = poll.asked_delay
    if delay is None:
        delay = next_delay(poll.app, poll.retries, poll.body)
    quiet_since = now - min(delay, first_delay(poll.app, poll.body))
    record, uncounted = ledger.look(poll.group_id, poll.header.ids, quiet_since)
    if record is None:
        return None
    if record.claimed_until > now:
        return max(1.0, min(delay, record.claimed_until - now))
    if record.claimed_until and _was_published(poll):
        # Whoever ended it died before it could be forgotten.
        ledger.close(poll.group_id)
        return None
    claim = None
    if record.size is None:
        # Its producer could not tell the members.
        ledger.set_header(poll.group_id, poll.header.header)
    elif record.returned >= record.size:
        claim = ledger.claim(poll.group_id)
    for task_id in uncounted if claim is None else ():
        claim = ledger.count(poll.group_id, Part(task_id)) or claim
        record = replace(record, progressed=now)
    if claim is not None and end(poll.app, ledger, claim, poll.body):
        return None
    idle, timeout = now - record.progressed, poll.policy.timeout
    reason = poll.why_settle(idle)
    if reason is None:
        return delay if timeout is None else max(1.0, min(delay, timeout - idle))
    claim = ledger.claim(poll.group_id)
    if claim is None:
        return delay
    logger.warning("Chord %s is settled %s", poll.group_id, reason)
    end(poll.app, ledger, claim, poll.body, settled=reason)
    return None


def _was_published(poll: Poll) -> bool:
    body = maybe_signature(poll.body, app=poll.app)
    ids = completion.task_ids(completion.waiting_for(body))
    return bool(backends.ready_states(poll.app.backend, ids))


def _results_of(ledger: DatabaseLedger, claim: Claim) -> dict[str, StoredResult]:
    ids = list(completion.leaf_ids(claim.header))
    results = _ready(backends.read_results(ledger.backend, ids).values())
    if len(results) < len(set(ids)):
        results.update(_ready(_carried(ledger, claim.group_id)))
    return results


def _ready(results: Iterable[StoredResult]) -> dict[str, StoredResult]:
    return {result.task_id: result for result in results if result.state in states.READY_STATES}


def _carried(ledger: DatabaseLedger, group_id: str) -> Iterable[StoredResult]:
    for task_id, payload in ledger.payloads(group_id).items():
        state, value = ledger.backend.decode(payload)
        yield StoredResult(task_id, state, value)
