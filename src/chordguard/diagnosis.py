"""What is the matter with a chord: the evidence, and the name that it is given.

`examine` asks the ledger and the stored results, which is what the watchdog and the safety net
act on. `diagnose` asks the workers and the broker's queues, too, which takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from kombu.exceptions import ContentDisallowed

from . import backends, completion, counting, masking, whereabouts
from .errors import CannotTell, LedgerMissing
from .ledger import checked
from .ledger.model import Header, Ledger, Outstanding, Record
from .policy import timeout_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "BODY_DONE",
    "CLAIM_EXPIRED",
    "KINDS",
    "MEMBER_LOST",
    "PART_LOST",
    "POLLER_LOST",
    "READY",
    "RUNNING",
    "SIZE_MISSING",
    "UNKNOWN",
    "Diagnosis",
    "bounded_ledger",
    "diagnose",
    "diagnose_all",
    "examine",
    "examine_all",
)

#: Members are being worked on, or wait for it; or the chord is just being ended.
RUNNING = "running"
#: All parts were counted, and nobody publishes the body.
READY = "ready-not-fired"
#: A member's result is stored, and its part was not counted.
PART_LOST = "part-lost"
#: A member is not done, and neither a worker nor a queue has it; or it took too long.
MEMBER_LOST = "member-lost"
#: Who ended the chord died before it was ended.
CLAIM_EXPIRED = "claim-expired"
#: The last member was never sent.
SIZE_MISSING = "size-missing"
#: SQL: no worker and no queue has `celery.chord_unlock`, which workers without the patches need.
POLLER_LOST = "poller-lost"
#: The body was published, the chord is still in the ledger.
BODY_DONE = "body-done"
#: The ledger does not know the chord, or evidence could not be collected.
UNKNOWN = "unknown"

KINDS = (
    RUNNING,
    READY,
    PART_LOST,
    MEMBER_LOST,
    CLAIM_EXPIRED,
    SIZE_MISSING,
    POLLER_LOST,
    BODY_DONE,
    UNKNOWN,
)

#: Seconds without progress before anything is thought to be wrong: what a worker without the
#: patches does in two steps takes less.
QUIET_SECONDS = 5.0

#: Seconds after which whom somebody waits for is given up.
GIVEN_UP_AFTER = 2.0

#: The longest time, in seconds, between two looks at a chord.
SLOWEST = 300.0


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a chord, and what is the matter with it.

    Attributes:
        group_id: The id of the chord's header.
        kind: One of :data:`KINDS`.
        reason: The evidence in a sentence.
        record: What the ledger says; None where it does not know the chord.
        header: The members' ids, nested as the header is; None where they are not known.
        body: The signature of the body; None where it is not known.
        idle: Seconds without progress.
        timeout: Seconds without progress after which the chord is settled; None: never.
        missing: The members that were neither counted nor have a result, where that was asked.
        uncounted: The results of members whose parts were not counted.
        body_ids: The ids of the results that the body gives.
        body_damage: What of the body cannot be read, in a sentence; it must not be published.
        evidence: Where members without a result were seen, by id.
    """

    group_id: str
    kind: str
    reason: str
    record: Record | None = None
    header: Header | None = None
    body: Any = None
    idle: float = 0.0
    timeout: float | None = None
    missing: tuple[str, ...] = ()
    uncounted: tuple[backends.StoredResult, ...] = ()
    body_ids: tuple[str, ...] = ()
    body_damage: str | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Tell whether something is the matter with it for certain."""
        return self.kind not in (RUNNING, UNKNOWN)

    @property
    def is_damaged(self) -> bool:
        """Tell whether what the ledger keeps of it cannot be read, and nothing else is known."""
        return self.kind == UNKNOWN and self.record is not None and self.record.damage is not None

    @property
    def is_overdue(self) -> bool:
        """Tell whether there was no progress for longer than the chord's timeout."""
        return self.timeout is not None and self.idle >= self.timeout

    def __str__(self) -> str:
        return f"{self.group_id}: {self.kind} ({self.reason})"


def examine(
    ledger: Ledger,
    group_id: str,
    *,
    header: Header | None = None,
    body: Mapping[str, Any] | None = None,
    is_thorough: bool = False,
) -> Diagnosis:
    """Diagnose a chord from the ledger and the stored results alone.

    Arguments:
        ledger: Where it is counted.
        group_id: The chord.
        header: Its members' ids, where the caller knows them and the ledger may not.
        body: Its body, likewise.
        is_thorough: Look for results of members even if there was progress just now.
    """
    record = ledger.read(group_id)
    found = [_unexamined(ledger, group_id, record, header, body)]
    return _examined(ledger, found, is_thorough=is_thorough)[0]


def examine_all(
    ledger: Ledger, group_ids: Sequence[str], *, is_thorough: bool = False
) -> list[Diagnosis]:
    """Diagnose chords as `examine` does, with a few queries for all of them together.

    Arguments:
        ledger: Where they are counted.
        group_ids: The chords.
        is_thorough: Look for results of members even if there was progress just now.
    """
    records = ledger.read_all(group_ids)
    found = [_unexamined(ledger, id_, records.get(id_)) for id_ in group_ids]
    return _examined(ledger, found, is_thorough=is_thorough)


def _unexamined(
    ledger: Ledger,
    group_id: str,
    record: Record | None,
    header: Header | None = None,
    body: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Return what the ledger alone tells of a chord, which may be all."""
    if record is None:
        return Diagnosis(
            group_id,
            UNKNOWN,
            "the ledger does not know it: it has ended, or was started without the patches",
        )
    try:
        return _unexamined_record(ledger, record, header, body)
    except backends.errors(ledger.backend):
        raise
    except Exception as exc:  # noqa: BLE001 - it is told; the others are looked at all the same
        reason = f"it cannot be read: {checked.in_a_line(exc)}"
        return Diagnosis(group_id, UNKNOWN, reason, replace(record, damage=reason))


def _unexamined_record(
    ledger: Ledger, record: Record, header: Header | None, body: Mapping[str, Any] | None
) -> Diagnosis:
    app = ledger.backend.app
    now = time.time()
    body_damage = None
    if body is None and record.body is not None:
        try:
            body, body_damage = checked.body_of(app, record.body)
        except ContentDisallowed as exc:
            # Perhaps another app's.
            reason = f"its body cannot be read: {type(exc).__name__}: {exc}"
            return Diagnosis(record.group_id, UNKNOWN, reason, record)
    found = Diagnosis(
        record.group_id,
        RUNNING,
        "",
        replace(record, damage=record.damage or body_damage),
        record.header if record.header is not None else header,
        body,
        idle=max(0.0, now - record.progressed),
        timeout=None if body is None else timeout_of(app, body),
        body_ids=() if body is None else tuple(completion.task_ids(completion.waiting_for(body))),
        body_damage=body_damage,
    )
    if record.is_over and not record.lost:
        return replace(found, kind=BODY_DONE, reason="a worker without the patches has ended it")
    if record.claimed_until > now:
        return replace(found, reason="a worker is just ending it")
    if found.record is not None and found.record.damage:
        return replace(found, kind=UNKNOWN, reason=found.record.damage)
    return found


def _examined(ledger: Ledger, chords: Sequence[Diagnosis], *, is_thorough: bool) -> list[Diagnosis]:
    """Look for the results that matter, and decide what is the matter with each chord."""
    undecided = [found for found in chords if not found.reason]
    headers = {
        found.group_id: found.header
        for found in undecided
        if found.header is not None
        and not _is_counted(found)
        and (found.idle >= QUIET_SECONDS or is_thorough)
    }
    outstanding = ledger.outstanding(headers)
    body_ids = [
        task_id
        for found in undecided
        if _may_be_published(found, outstanding.get(found.group_id))
        for task_id in found.body_ids
    ]
    bodies = backends.read_results(ledger.backend, body_ids)
    chords = [_with_vanished(ledger, found) for found in chords]
    return [
        found
        if found.reason
        else _decided(found, outstanding.get(found.group_id), bodies, is_thorough)
        for found in chords
    ]


def _with_vanished(ledger: Ledger, found: Diagnosis) -> Diagnosis:
    """Look for counted members of an overdue chord that have no result any more."""
    if found.reason or not (_is_counted(found) and found.is_overdue and found.header):
        return found
    return replace(found, missing=tuple(ledger.vanished(found.group_id, found.header)))


def _is_counted(found: Diagnosis) -> bool:
    """Tell whether all parts were counted, as far as anybody knew who claimed the chord."""
    record = found.record
    return record is not None and bool(record.is_complete or record.claimed_until)


def _may_be_published(found: Diagnosis, outstanding: Outstanding | None) -> bool:
    is_whole = outstanding is not None and not outstanding.missing
    is_suspect = found.record is not None and found.record.is_over
    return is_whole or is_suspect or _is_counted(found) or found.is_overdue


def _decided(
    found: Diagnosis,
    outstanding: Outstanding | None,
    bodies: Mapping[str, backends.StoredResult],
    is_thorough: bool,
) -> Diagnosis:
    """Name what is the matter with a chord; `bodies` are the results that bodies have."""
    states = []
    if _may_be_published(found, outstanding):
        states = [f"{id_} is {bodies[id_].state}" for id_ in found.body_ids if id_ in bodies]
    if states:
        kind, reason = BODY_DONE, f"its body has been published: {', '.join(states)}"
    elif _is_counted(found):
        kind, reason = _when_counted(found)
    else:
        kind, reason = _when_counting(found, outstanding, is_thorough)
    if outstanding is None:
        return replace(found, kind=kind, reason=reason)
    missing, uncounted = outstanding.missing, outstanding.uncounted
    return replace(found, kind=kind, reason=reason, missing=missing, uncounted=uncounted)


def _when_counted(found: Diagnosis) -> tuple[str, str]:
    record: Any = found.record
    if found.missing:
        gone = ", ".join(found.missing)
        return MEMBER_LOST, f"members were counted whose results are gone: {gone}"
    if record.claimed_until:
        ago = time.time() - record.claimed_until
        return CLAIM_EXPIRED, f"the claim of the worker that ended it ran out {ago:.0f} s ago"
    if found.idle < QUIET_SECONDS:
        return RUNNING, "its last part has just been counted"
    return READY, f"all {record.size} members are done for {found.idle:.0f} s"


def _when_counting(
    found: Diagnosis, outstanding: Outstanding | None, is_thorough: bool
) -> tuple[str, str]:
    record: Any = found.record
    size = "?" if record.size is None else record.size
    returned = f"{record.returned} of {size} members are done"
    if record.lost:
        returned += f", the ledger has lost its {', '.join(record.lost)}"
    if outstanding is not None and outstanding.uncounted:
        counted = f"{len(outstanding.uncounted)} more have a result that was not counted"
        return PART_LOST, f"{returned}, {counted}"
    if record.size is None:
        if outstanding is not None and not outstanding.missing:
            return READY, f"all {record.returned} members are done, its size was never told"
        if found.is_overdue or is_thorough:
            return SIZE_MISSING, f"{returned}: its last member was not sent for {found.idle:.0f} s"
    if found.is_overdue:
        bound = f"chord_timeout = {found.timeout:g}"
        return MEMBER_LOST, f"{returned}, no progress for {found.idle:.0f} s ({bound})"
    return RUNNING, f"{returned}, the last one {found.idle:.0f} s ago"


def diagnose(app: Celery, group_id: str) -> Diagnosis:
    """Tell what is the matter with a chord.

    Beside ledger and results, the workers are asked what they work on, and the queues are read
    where the broker allows it (Redis). Where evidence is missing the answer is "unknown".

    Arguments:
        app: An app with the patches.
        group_id: The id of the chord's header: ``result.parent.id`` of the chord's result.

    Raises:
        LedgerMissing: The app has no ledger, or it cannot be used.
    """
    return diagnose_all(app, [group_id])[0]


def diagnose_all(
    app: Celery, group_ids: Sequence[str] | None = None, *, ledger: Ledger | None = None
) -> list[Diagnosis]:
    """Tell what is the matter with chords, as `diagnose` does, asking once for all of them.

    Arguments:
        app: An app with the patches.
        group_ids: The ids of their headers; None: all live chords.
        ledger: That of `app`, such as a :func:`bounded_ledger`.

    Raises:
        LedgerMissing: The app has no ledger, or it cannot be used.
    """
    ledger = ledger or ledger_of(app)
    ids = ledger.group_ids() if group_ids is None else group_ids
    found = {each.group_id: each for each in examine_all(ledger, ids, is_thorough=True)}
    pollers = {
        id_: counting.unlock_id(id_) if backends.is_database(app.backend) else None
        for id_, each in found.items()
        if each.kind == RUNNING and each.missing
    }
    wanted = {id_ for each in map(found.get, pollers) if each for id_ in each.missing}
    places, why_not_all = whereabouts.find(app, wanted | set(filter(None, pollers.values())))
    # Some were seen nowhere since they have ended meanwhile.
    again = [id_ for id_ in pollers if not places.keys() >= set(found[id_].missing)]
    found.update((e.group_id, e) for e in examine_all(ledger, again, is_thorough=True))
    for id_, poller in pollers.items():
        if found[id_].kind == RUNNING:
            found[id_] = _located(found[id_], poller, places, why_not_all)
    return [found[id_] for id_ in ids]


def _located(
    found: Diagnosis, poller: str | None, places: Mapping[str, str], why_not_all: str | None
) -> Diagnosis:
    """Name what is the matter with a chord that runs, given where tasks were seen."""
    wanted = [*found.missing, *([poller] if poller else [])]
    seen = {id_: places[id_] for id_ in wanted if id_ in places}
    nowhere = [task_id for task_id in found.missing if task_id not in seen]
    kind, reason = found.kind, found.reason
    if nowhere and why_not_all:
        kind, reason = UNKNOWN, f"{reason}; {len(nowhere)} not seen, but {why_not_all}"
    elif nowhere:
        kind, reason = MEMBER_LOST, f"no worker and no queue has {', '.join(nowhere)}"
    elif poller and poller not in seen and not why_not_all:
        kind = POLLER_LOST
        reason = f"{reason}; no worker and no queue has its celery.chord_unlock"
    elif seen:
        reason = f"{reason}; {_told(seen.values())}"
    return replace(found, kind=kind, reason=reason, evidence=seen)


def ledger_of(app: Celery) -> Any:
    """Return the ledger of `app`.

    Raises:
        LedgerMissing: There is none.
    """
    return counting.ledger_of(app.backend, is_read=True) or _raise_missing(app)


def _raise_missing(app: Celery) -> NoReturn:
    raise LedgerMissing(
        f"the result backend {type(app.backend).__name__} keeps no ledger of chords: expected "
        "Redis or a SQL database with chord_ledger = True, and its tables (see `python -m "
        "chordguard ddl`)"
    )


@contextmanager
def bounded_ledger(app: Celery, seconds: float = GIVEN_UP_AFTER) -> Iterator[Ledger]:
    """Yield the ledger of `app`, for whom cannot wait: what takes long is not tried again.

    Arguments:
        app: An app with the patches.
        seconds: After which an answer, or a connection, is given up.

    Raises:
        LedgerMissing: There is none.
        CannotTell: The result backend cannot be read, which may come up within the block.
    """
    try:
        backend = backends.bounded(app, seconds)
    except Exception as exc:  # noqa: BLE001 - it is told
        raise _cannot_tell(app, exc) from masking.cause_to_show(exc)
    try:
        yield counting.ledger_on(backend, is_read=True) or _raise_missing(app)
    except backends.errors(backend) as exc:
        raise _cannot_tell(app, exc) from masking.cause_to_show(exc)
    finally:
        backends.disconnect(backend)


def _cannot_tell(app: Celery, exc: Exception) -> CannotTell:
    where = backends.address(app)
    why = masking.why_unparsable(exc, "result_backend") or masking.masked(_first_line(exc))
    return CannotTell(f"the result backend {where} cannot be read: {why}")


def _first_line(exc: BaseException) -> str:
    # What the driver says, without SQLAlchemy's statement and its parameters.
    cause = getattr(exc, "orig", None) or exc
    return next(iter(str(cause).splitlines()), "") or type(exc).__name__


def _told(places: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for place in places:
        counts[place] = counts.get(place, 0) + 1
    return ", ".join(f"{count} {place}" for place, count in sorted(counts.items()))
