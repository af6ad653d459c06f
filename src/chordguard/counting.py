"""Chords that are counted: opened when they start, ended by their last part.

What nobody counted, or claimed and did not end, is found by the watchdog of any worker. On SQL
`celery.chord_unlock` stays as a late and slow safety net, which looks in the same way.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from kombu.exceptions import OperationalError

from . import backends, claims, completion, hooks, settings, signals
from .errors import OUTSIDE
from .ledger import model, rights
from .ledger.checked import ChordUnreadable
from .ledger.model import Claim, Ledger, Part, RecordLost
from .policy import Policy

if TYPE_CHECKING:
    from celery import Celery

    from .ledger.database import DatabaseLedger

__all__ = (
    "UNLOCK_ID",
    "StoredPart",
    "being_stored",
    "count",
    "counted",
    "end",
    "end_from_part",
    "first_delay",
    "is_ignored",
    "ledger_of",
    "ledger_of_kind",
    "ledger_on",
    "next_delay",
    "part_of",
    "send_unlock",
    "unlock_id",
    "warn_once",
    "warn_once_of",
)

logger = logging.getLogger("chordguard")

#: The longest time, in seconds, between two looks of the safety net.
SLOWEST = 300.0

#: The keyword argument that takes the id of a poller to where it is sent.
UNLOCK_ID = "chordguard_task_id"

_UNLOCK = UUID("b3c1cf9c-6b5c-4a8e-9a55-7d0f0e2f6a10")


def ledger_of(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return the ledger of a `backend`; None where there is none, or it cannot be used now.

    Arguments:
        backend: The result backend.
        asked: Whether the setting ``chord_ledger`` decides.
        is_read: Whether it is enough that the ledger can be read.
    """
    try:
        return ledger_on(backend, asked=asked, is_read=is_read)
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chords are polled for now: the ledger cannot be reached")
        return None


def ledger_on(backend: Any, *, asked: bool = True, is_read: bool = False) -> Any:
    """Return what `ledger_of` returns, but raise what the driver raises."""
    if asked and not settings.get(backend.app, "chord_ledger"):
        return None
    ledger = ledger_of_kind(backend)
    if ledger is None or not ledger.is_usable():
        return None
    return ledger if is_read or ledger.may_count() else None


def ledger_of_kind(backend: Any) -> Any:
    """Return the ledger of a kind of `backend`, which is not connected to; None: it has none."""
    if hooks.counts_itself(backend):
        return None
    if backends.is_redis(backend):
        from .ledger.redis import RedisLedger

        return RedisLedger(backend)
    if not backends.is_database(backend) or hooks.polls_itself(backend.app):
        return None
    # It needs SQLAlchemy, without which there is no such backend.
    from .ledger.database import DatabaseLedger

    return DatabaseLedger(backend)


_warned: set[tuple[str, type | None]] = set()


def warn_once(message: str, *args: Any) -> None:
    """Log the exception that is being handled, each kind once in a process."""
    kind, exc, _ = sys.exc_info()
    if rights.is_told(exc):
        return
    if (message, kind) not in _warned:
        _warned.add((message, kind))
        logger.warning("%s (said once)", message % args, exc_info=True)


#: The chords that were told of, with what was said; the oldest is forgotten first.
_told_of: OrderedDict[tuple[str, str], None] = OrderedDict()

#: How many of them are remembered.
TOLD_OF = 10_000


def warn_once_of(group_id: str, message: str, *args: Any) -> None:
    """Log a warning of a chord, whose id comes first; the same message once in a process."""
    key = (group_id, message)
    if key not in _told_of:
        _told_of[key] = None
        if len(_told_of) > TOLD_OF:
            _told_of.popitem(last=False)
        logger.warning(message, group_id, *args)


class StoredPart:
    """A part whose result is about to be stored, and can be counted in the same transaction."""

    def __init__(self, ledger: DatabaseLedger, request: Any, token: str) -> None:
        self.ledger = ledger
        self.key = (request.group, request.id)
        self.token = token
        self.is_counted = False
        self.claim: Claim | None = None

    def store(self, statement: Any, values: dict[str, Any]) -> bool:
        """Execute the statement that stores the result, and count the part.

        Returns:
            False where the database refuses to count: then nothing was done.
        """
        group_id, task_id = self.key
        store = (statement, values)
        try:
            self.claim = self.ledger.store_and_count(group_id, Part(task_id), store, self.token)
        except Exception as exc:
            if not self.ledger.refuse(exc):
                raise
            return False
        self.is_counted = True
        return True


#: The part that the store under way is about.
being_stored: ContextVar[StoredPart | None] = ContextVar("chordguard_being_stored", default=None)

#: Chord and member of the last part that was counted as its result was stored.
counted: ContextVar[tuple[str, str] | None] = ContextVar("chordguard_counted", default=None)


def unlock_id(group_id: str) -> str:
    """Return the id of the `celery.chord_unlock` of a counted chord.

    It says that the chord is counted, and lets the poller of a chord be found.
    """
    return str(uuid5(_UNLOCK, group_id))


def send_unlock(
    backend: Any, group_id: str, results: Iterable[Any], body: Any, options: Mapping[str, Any]
) -> None:
    """Send the safety net of a chord on SQL, as late as the settings say.

    Arguments:
        backend: The result backend.
        group_id: The chord.
        results: The results of its header.
        body: Its body.
        options: What `Backend.apply_chord` was given beside them.
    """
    options = dict(options)
    countdown = max(first_delay(backend.app, body), options.pop("countdown", 0) or 0)
    options[UNLOCK_ID] = unlock_id(group_id)
    header = backend.app.GroupResult(group_id, list(results))
    backend.fallback_chord_unlock(header, body, countdown=countdown, **options)


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


def part_of(ledger: Ledger, request: Any, state: str, result: Any) -> Part:
    """Return the part that a done task returns."""
    is_result_ignored = is_ignored(ledger.backend.app, request)
    return ledger.part_of(request, state, result, is_ignored=is_result_ignored)


def is_ignored(app: Celery, request: Any) -> bool:
    """Tell whether Celery stores no result of the task that `request` is for."""
    task = app.tasks.get(request.task)
    ignored = getattr(request, "ignore_result", None) or getattr(task, "ignore_result", False)
    return bool(ignored)


def count(
    ledger: Ledger,
    request: Any,
    state: str,
    result: Any,
    *,
    refusals: tuple[type[Exception], ...] = (),
) -> None:
    """Count the part that a task returns; end the chord if it was the last one.

    Nothing but `refusals`, and what comes from outside, is raised: the task itself did well, and
    the watchdog finds its result.
    """
    with ledger.asking(request.group) as token:
        try:
            claim = ledger.count(request.group, part_of(ledger, request, state, result), token)
        except (*refusals, *OUTSIDE):
            raise
        except RecordLost:
            _reopen(ledger, request)
            return
        except Exception:  # noqa: BLE001 - it is logged
            warn_once("Chord %s may end late: a part could not be counted", request.group)
            return
        if claim is not None:
            end_from_part(ledger, claim, request.chord)


def _reopen(ledger: Ledger, request: Any) -> None:
    """Write the record of a chord anew, with the body that one of its members brought along."""
    app = ledger.backend.app
    try:
        timeout = Policy.of(app, request.chord).timeout
        body = model.pack_data(app, request.chord)
        due = time.time() + settings.interval(app)
        if ledger.reopen(request.group, body, due, timeout):
            warn_once_of(request.group, "Chord %s: its record was lost, and is written anew")
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chord %s may never end: its record was lost", request.group)


def end_from_part(ledger: Ledger, claim: Claim, body: Mapping[str, Any]) -> None:
    """End a chord where its last part was counted; what fails is left to the watchdog."""
    try:
        end(ledger, claim, body)
    except OUTSIDE:
        raise
    except Exception as exc:
        if not rights.is_told(exc):
            logger.exception("Chord %s ends late: it could not be ended", claim.group_id)


def end(
    ledger: Ledger,
    claim: Claim,
    body: Mapping[str, Any],
    *,
    settled: str | None = None,
    takes_over: bool = False,
    is_body_damaged: bool = False,
) -> bool:
    """End a chord that was claimed, and forget it.

    Arguments:
        ledger: Where the chord is counted.
        claim: The claim on it.
        body: Its body, which may be data.
        settled: Why it ends although members may be missing; they count as lost then.
        takes_over: Whether somebody else may have ended it until just now: it is looked at once
            more before its body is published.
        is_body_damaged: Whether something is missing in its body: it is settled, and fails.

    Returns:
        False when it cannot end yet: the result of a member is not stored although it was
        counted, or the broker is away. The claim is given back, the watchdog looks again.
    """
    app = ledger.backend.app
    is_finished = False
    settled = settled and f"Chord {claim.group_id} was settled {settled}"
    try:
        with claims.held(partial(_renew, ledger, claim)) as is_ours:
            started = _started(ledger, claim) if signals.chord_ended.receivers else None
            if settled and (claim.header is None or is_body_damaged):
                why = "its body is" if is_body_damaged else "not all of its members are"
                error = ChordError(f"{settled}: {why} not known")
                body = maybe_signature(body, app=app)
                completion.fail_chord(app, claim.group_id, body, error, started=started)
                ledger.close(claim.group_id, has_failed=True)
                return True
            header, results = ledger.collect(claim)
            missing = [id_ for id_ in model.leaf_ids(header) if id_ not in results]
            if not missing:
                settled = None
            elif settled is None:
                if not takes_over:
                    # The watchdog finds the same again and again.
                    told = ", ".join(missing)
                    warn_once_of(claim.group_id, "Chord %s: no results yet of %s", told)
                ledger.release(claim)
                return False
            if not is_ours(takes_over):
                logger.warning("Chord %s: somebody else ends it", claim.group_id)
                return False
            is_published = completion.finish(
                app,
                maybe_signature(body, app=app),
                header,
                results,
                Policy.of(app, body),
                group_id=claim.group_id,
                started=started,
                settled=settled,
                is_tried_again=settled is None,
            )
            is_finished = True
            ledger.close(claim.group_id, has_failed=not is_published)
    except ChordUnreadable as exc:
        warn_once_of(claim.group_id, "Chord %s cannot be ended yet: %s", exc)
        ledger.release(claim)
        return False
    except OperationalError:
        logger.warning("Chord %s: its body cannot be published now", claim.group_id, exc_info=True)
        ledger.release(claim)
        return False
    except BaseException:
        if not is_finished:
            # Somebody else may try at once, not only when the claim expires.
            with suppress(Exception):
                ledger.release(claim)
        raise
    return True


def _started(ledger: Ledger, claim: Claim) -> float | None:
    """Return when a chord started (Unix time), as far as that can be found out."""
    try:
        record = ledger.read(claim.group_id)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("It cannot be told how long chord %s took", claim.group_id)
        return None
    return None if record is None else record.created


def _renew(ledger: Ledger, claim: Claim) -> bool:
    """Renew a claim; return False where somebody else has it."""
    try:
        return ledger.renew(claim)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("The claim on chord %s cannot be renewed", claim.group_id)
        return True
