"""What is the matter with a chord: the evidence, and the name that it is given.

`examine` asks the ledger and the stored results, which is what the watchdog and the safety net
act on. `diagnose` asks the workers and the broker's queues, too, which takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import backends, completion, counting
from .errors import LedgerMissing
from .ledger import model
from .ledger.model import Header, Ledger, Record
from .policy import Policy

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
    "diagnose",
    "examine",
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

#: The longest time, in seconds, between two looks at a chord.
SLOWEST = 300.0

#: Seconds for which `diagnose` waits for the workers to answer.
ASKING_SECONDS = 1.0


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
        missing: The members without a result.
        uncounted: The results of members whose parts were not counted.
        body_ids: The ids of the results that the body gives.
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
    evidence: Mapping[str, str] = field(default_factory=dict)

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
    if record is None:
        return Diagnosis(
            group_id,
            UNKNOWN,
            "the ledger does not know it: it has ended, or was started without the patches",
        )
    now = time.time()
    if body is None and record.body is not None:
        try:
            body = model.unpack_body(ledger.backend.app, record.body)
        except Exception as exc:  # noqa: BLE001 - it is told
            reason = f"its body cannot be read: {type(exc).__name__}: {exc}"
            return Diagnosis(group_id, UNKNOWN, reason, record)
    found = Diagnosis(
        group_id,
        RUNNING,
        "",
        record,
        record.header if record.header is not None else header,
        body,
        idle=max(0.0, now - record.progressed),
        timeout=None if body is None else Policy.of(ledger.backend.app, body).timeout,
        body_ids=() if body is None else tuple(completion.task_ids(completion.waiting_for(body))),
    )
    if record.is_over:
        return replace(found, kind=BODY_DONE, reason="a worker without the patches has ended it")
    if record.claimed_until > now:
        return replace(found, reason="a worker is just ending it")
    if record.is_complete or record.claimed_until:
        return _when_complete(ledger, found, record)
    return _when_incomplete(ledger, found, record, is_thorough)


def _when_complete(ledger: Ledger, found: Diagnosis, record: Record) -> Diagnosis:
    published = _when_published(ledger, found)
    if published is not None:
        return published
    if record.claimed_until:
        ago = time.time() - record.claimed_until
        return replace(
            found,
            kind=CLAIM_EXPIRED,
            reason=f"the claim of the worker that ended it ran out {ago:.0f} s ago",
        )
    if found.idle < QUIET_SECONDS:
        return replace(found, reason="its last part has just been counted")
    return replace(
        found, kind=READY, reason=f"all {record.size} members are done for {found.idle:.0f} s"
    )


def _when_published(ledger: Ledger, found: Diagnosis) -> Diagnosis | None:
    results = backends.read_results(ledger.backend, found.body_ids)
    if not results:
        return None
    states = ", ".join(f"{id_} is {result.state}" for id_, result in results.items())
    return replace(found, kind=BODY_DONE, reason=f"its body has been published: {states}")


def _when_incomplete(
    ledger: Ledger, found: Diagnosis, record: Record, is_thorough: bool
) -> Diagnosis:
    size = "?" if record.size is None else record.size
    returned = f"{record.returned} of {size} members are done"
    if found.header is not None and (found.idle >= QUIET_SECONDS or is_thorough):
        ids = list(model.leaf_ids(found.header))
        uncounted = tuple(ledger.uncounted(record, found.header))
        found = replace(found, uncounted=uncounted)
        is_all_there = record.returned + len(uncounted) >= len(set(ids))
        published = _when_published(ledger, found) if is_all_there else None
        if published is not None:
            return published
        if uncounted:
            counted = f"{len(uncounted)} more have a result that was not counted"
            return replace(found, kind=PART_LOST, reason=f"{returned}, {counted}")
        if record.size is None and record.returned >= len(ids):
            return replace(
                found,
                kind=READY,
                reason=f"all {len(ids)} members are done, its size was never told",
            )
    published = _when_published(ledger, found) if found.is_overdue else None
    if published is not None:
        return published
    if record.size is None and (found.is_overdue or is_thorough):
        reason = f"{returned}: its last member was not sent for {found.idle:.0f} s"
        return replace(found, kind=SIZE_MISSING, reason=reason)
    if found.is_overdue:
        return replace(
            found,
            kind=MEMBER_LOST,
            reason=f"{returned}, no progress for {found.idle:.0f} s "
            f"(chord_timeout = {found.timeout:g})",
        )
    return replace(found, reason=f"{returned}, the last one {found.idle:.0f} s ago")


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
    ledger = ledger_of(app)
    found = examine(ledger, group_id, is_thorough=True)
    if found.kind not in (RUNNING, MEMBER_LOST) or found.record is None or found.header is None:
        return found
    if found.record.claimed_until > time.time() or found.record.is_complete:
        return found
    results = backends.ready_states(app.backend, list(model.leaf_ids(found.header)))
    missing = tuple(i for i in model.leaf_ids(found.header) if i not in results)
    found = replace(found, missing=missing)
    if found.is_overdue or not missing:
        return found
    poller = counting.unlock_id(group_id) if backends.is_database(app.backend) else None
    seen, unseen_because = _where(app, [*missing, *([poller] if poller else [])])
    found = replace(found, evidence=seen)
    nowhere = [task_id for task_id in missing if task_id not in seen]
    if not nowhere and poller and poller not in seen and unseen_because is None:
        reason = f"{found.reason}; no worker and no queue has its celery.chord_unlock"
        return replace(found, kind=POLLER_LOST, reason=reason)
    if not nowhere:
        return replace(found, reason=f"{found.reason}; {_told(seen.values())}")
    if unseen_because:
        reason = f"{found.reason}; {len(nowhere)} not seen, but {unseen_because}"
        return replace(found, kind=UNKNOWN, reason=reason)
    return replace(
        found,
        kind=MEMBER_LOST,
        reason=f"no worker and no queue has {', '.join(nowhere)}",
    )


def ledger_of(app: Celery) -> Any:
    """Return the ledger of `app`.

    Raises:
        LedgerMissing: There is none.
    """
    ledger = counting.ledger_of(app.backend)
    if ledger is None:
        raise LedgerMissing(
            f"the result backend {type(app.backend).__name__} keeps no ledger of chords: expected "
            "Redis or a SQL database with chord_ledger = True, and its tables (see `python -m "
            "chordguard ddl`)"
        )
    return ledger


def _where(app: Celery, task_ids: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Return where tasks are seen, by id, and why that may not be all there is."""
    wanted = set(task_ids)
    seen: dict[str, str] = {}
    try:
        inspect = app.control.inspect(timeout=ASKING_SECONDS)
        answers = {
            "runs": inspect.active(),
            "is reserved": inspect.reserved(),
            "is scheduled": inspect.scheduled(),
        }
    except Exception as exc:  # noqa: BLE001 - it is told
        return seen, f"the workers cannot be asked ({type(exc).__name__})"
    if not all(answers.values()):
        return seen, "no worker answered"
    for what, answer in answers.items():
        for worker, tasks in (answer or {}).items():
            for task in tasks:
                task_id = task.get("request", task).get("id")
                if task_id in wanted:
                    seen[task_id] = f"{what} on {worker}"
    if wanted <= seen.keys():
        return seen, None
    queued, why = _queued(app, {name for tasks in answers.values() for name in tasks or ()})
    seen.update({id_: where for id_, where in queued.items() if id_ in wanted})
    return seen, why


def _queued(app: Celery, workers: set[str]) -> tuple[dict[str, str], str | None]:
    """Return the tasks in the broker's queues, and why that may not be all there is."""
    from json import loads

    try:
        with app.connection_for_read() as connection:
            if connection.transport.driver_type != "redis":
                return {}, f"the queues of {connection.transport.driver_type} cannot be read"
            channel = connection.default_channel
            queues = app.control.inspect(timeout=ASKING_SECONDS).active_queues() or {}
            if not workers <= queues.keys():
                return {}, "not every worker told its queues"
            found: dict[str, str] = {}
            for name in {queue["name"] for told in queues.values() for queue in told}:
                for priority in channel.priority_steps:
                    for message in channel.client.lrange(channel._q_for_pri(name, priority), 0, -1):
                        found[loads(message)["headers"].get("id")] = f"waits in {name}"
            for entry in channel.client.hgetall(channel.unacked_key).values():
                message = loads(entry)[0]
                found[message["headers"].get("id")] = "was handed to a worker"
            return found, None
    except Exception as exc:  # noqa: BLE001 - it is told
        return {}, f"the queues cannot be read ({type(exc).__name__})"


def _told(places: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for place in places:
        counts[place] = counts.get(place, 0) + 1
    return ", ".join(f"{count} {place}" for place, count in sorted(counts.items()))
