"""The part that a member returns is counted; the last one ends the chord."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import EncodeError

from .. import settings
from ..errors import OUTSIDE
from ..ledger.model import ChordUnknown, Claim, Ledger, Part, RecordLost
from ..ledger.packing import Header, leaf_ids, pack_data
from ..log import warn_once, warn_once_of
from ..policy import Policy
from . import ending

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.django import DjangoLedger
    from ..ledger.sql import DatabaseLedger
    from ..upstream.results import StoredResult

__all__ = (
    "StoredPart",
    "about_to_store",
    "catch_up",
    "count",
    "is_counted",
    "is_ignored",
    "part_of",
    "part_to_store",
)


class StoredPart:
    """A part whose result is about to be stored, and can be counted in the same transaction."""

    def __init__(
        self, ledger: DatabaseLedger | DjangoLedger, request: Any, state: str, token: str
    ) -> None:
        self.ledger = ledger
        self.request = request
        self.state = state
        self.key = (request.group, request.id)
        self.token = token
        self.is_counted = False
        self.claim: Claim | None = None

    def store(self, store: Any) -> bool:
        """Store the result, and count the part.

        Arguments:
            store: What stores it, as the ledger's `store_and_count` takes it.

        Returns:
            False where the database refuses to count: then nothing was done.
        """
        group_id, task_id = self.key
        part = Part(task_id, has_failed=self.state in states.PROPAGATE_STATES)
        try:
            self.claim = self.ledger.store_and_count(group_id, part, store, self.token)
        except ChordUnknown:
            return True  # it is stored, and may be counted when it is returned
        except Exception as exc:
            if not self.ledger.refuse(exc):
                raise
            return False
        self.is_counted = True
        return True


#: The attribute of a request that holds its :class:`StoredPart` from when its result is about to be
#: stored: `store_result` of `counted_chords` sets it, and takes it off when it was not counted.
_PART = "chordguard_part"


def about_to_store(request: Any, part: StoredPart | None) -> None:
    """Note the part that is counted when the result of `request` is stored; None: it is not."""
    setattr(request, _PART, part)


def part_to_store(request: Any) -> StoredPart | None:
    """Return the part that is to be counted when the result of `request` is stored."""
    part: StoredPart | None = getattr(request, _PART, None)
    return None if part is None or part.is_counted else part


def is_counted(request: Any) -> bool:
    """Tell whether the part of `request` was counted as its result was stored."""
    part = getattr(request, _PART, None)
    return part is not None and part.is_counted and part.key == (request.group, request.id)


def part_of(ledger: Ledger, request: Any, state: str, result: Any) -> Part:
    """Return the part that a done task returns.

    A result that cannot be encoded, and that no result backend has refused, is a failure.
    """
    is_result_ignored = is_ignored(ledger.backend.app, request)
    try:
        return ledger.part_of(request, state, result, is_ignored=is_result_ignored)
    except EncodeError as exc:
        return ledger.part_of(request, states.FAILURE, exc, is_ignored=is_result_ignored)


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
            warn_once(
                "Could not count a member of chord %s; the watchdog will count it from its result",
                request.group,
            )
            return
        if claim is not None:
            ending.end_from_part(ledger, claim, request.chord)


def catch_up(
    ledger: Ledger,
    group_id: str,
    header: Header,
    results: Sequence[StoredResult],
    body: Mapping[str, Any],
) -> None:
    """Count members that are done and were not counted; end the chord if all are.

    Arguments:
        ledger: Where the chord is counted.
        group_id: The chord.
        header: Its members.
        results: Those of the members that are to be counted.
        body: Its body, which may be data.
    """
    index_of = {id_: index for index, id_ in enumerate(leaf_ids(header))}
    claim = None
    with ledger.asking(group_id) as token:
        for result in results:
            part = ledger.part_from(result, index_of[result.task_id])
            claim = ledger.count(group_id, part, token) or claim
        if claim is not None:
            ending.end(ledger, claim, body)


def _reopen(ledger: Ledger, request: Any) -> None:
    """Write the record of a chord anew, with the body that one of its members brought along."""
    app = ledger.backend.app
    try:
        timeout = Policy.of(app, request.chord).timeout
        body = pack_data(app, request.chord)
        due = time.time() + settings.interval(app)
        if ledger.reopen(request.group, body, due, timeout):
            warn_once_of(request.group, "Chord %s: the ledger entry was lost; wrote it again")
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Chord %s may never end: the ledger entry was lost and could not be written again",
            request.group,
        )
