"""The live chords of an app: what is the matter with each, and what of it is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..errors import CannotTell
from ..ledger.access import bounded_ledger
from ..ledger.tallies import Tally
from ..lifecycle.progress import Progress, progress_of
from ..policy import Policy
from ..upstream.signatures import kind_of, tasks_of, waiting_for
from ..upstream.workers import address_of_broker, broker_of
from .diagnosis import diagnose_all
from .evidence import examine_all
from .kinds import UNKNOWN, Diagnosis
from .repair import actions_for
from .wording import duration

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "HEALTHY",
    "NUMBERS",
    "UNHEALTHY",
    "Chord",
    "Survey",
    "name_of",
    "policy_of",
    "survey",
    "timestamp",
)

#: No chord is stuck.
HEALTHY = "healthy"
#: A chord is stuck, or too old.
UNHEALTHY = "unhealthy"


#: The columns that say how far a chord is; a narrow table has the first one.
NUMBERS = ("done", "failed", "rate", "eta")

#: Seconds in which the first worker has to answer.
ASKING_SECONDS = 2.0


@dataclass(frozen=True)
class Chord:
    """A live chord, as it is shown.

    Attributes:
        found: Its diagnosis.
        failed: How many members were counted and failed.
        age: Seconds since it started; None where that is not known.
        is_too_old: Whether it is older than asked for.
    """

    found: Diagnosis
    failed: int = 0
    age: float | None = None
    is_too_old: bool = False

    @property
    def id(self) -> str:
        """The id of its header."""
        return self.found.group_id

    @property
    def is_stuck(self) -> bool:
        """Tell whether it does not end without help."""
        return self.found.is_stuck

    @property
    def is_problem(self) -> bool:
        """Tell whether it is stuck, or older than asked for."""
        return self.is_stuck or self.is_too_old

    @property
    def size(self) -> int | None:
        """How many members it has; None where that is not known yet."""
        return self.found.record.size if self.found.record else None

    @property
    def done(self) -> int:
        """How many members were counted."""
        return self.found.record.returned if self.found.record else 0

    @property
    def missing(self) -> int | None:
        """How many members were not counted; None where that is not known."""
        return None if self.size is None else max(0, self.size - self.done)

    @property
    def body(self) -> str:
        """The name of its body's task."""
        return name_of(self.found.body)

    @property
    def progress(self) -> str:
        """Say how many members are done."""
        return f"{self.done}/{'?' if self.size is None else self.size}"

    @property
    def pace(self) -> Progress | None:
        """How fast it is, as :func:`chordguard.progress` tells; None where that is not known."""
        record = self.found.record
        return None if record is None else progress_of(Tally.of(record))

    @property
    def rate(self) -> str:
        """Say how many members are done a second."""
        rate = self.pace and self.pace.rate
        return f"{rate:.3g}/s" if rate else "-"

    @property
    def eta(self) -> str:
        """Say when all members will be done, at that rate."""
        return duration(None if self.pace is None else self.pace.eta)

    def numbers(self, *, is_wide: bool) -> tuple[str, ...]:
        """Return how far it is for a table with the columns :data:`NUMBERS`."""
        return (self.progress, str(self.failed), self.rate, self.eta)[: None if is_wide else 1]

    @property
    def remedy(self) -> str | None:
        """The name of what mends it; None where nothing does."""
        return next((action.name for action in actions_for(self.found)), None)

    def facts(self) -> dict[str, Any]:
        """Return what JSON tells of it."""
        record, pace = self.found.record, self.pace
        return {
            "group_id": self.id,
            "diagnosis": self.found.kind,
            "reason": self.found.reason,
            "is_stuck": self.is_stuck,
            "is_too_old": self.is_too_old,
            "repair": self.remedy,
            "body": self.body,
            "started": timestamp(record.created) if record else None,
            "age": self.age and round(self.age, 3),
            "idle": round(self.found.idle, 3) if record else None,
            "timeout": self.found.timeout,
            "rate": pace and pace.rate and round(pace.rate, 6),
            "eta": None if pace is None or pace.eta is None else round(pace.eta, 3),
            "members": {
                "size": self.size,
                "done": self.done,
                "failed": self.failed,
                "missing": self.missing,
            },
        }


@dataclass(frozen=True)
class Survey:
    """The live chords of an app, the oldest first."""

    chords: Sequence[Chord] = field(default_factory=list)

    @property
    def problems(self) -> list[Chord]:
        """The chords that need somebody."""
        return [chord for chord in self.chords if chord.is_problem]

    @property
    def unknown(self) -> list[Chord]:
        """The chords of which nothing can be told."""
        return [chord for chord in self.chords if chord.found.kind == UNKNOWN]

    @property
    def status(self) -> str:
        """Tell in a word how they are; "healthy" only where all of them are known to be."""
        if self.problems:
            return UNHEALTHY
        return UNKNOWN if self.unknown else HEALTHY

    @property
    def kinds(self) -> dict[str, int]:
        """How many chords there are by diagnosis, the most first."""
        counts: dict[str, int] = {}
        for chord in self.chords:
            counts[chord.found.kind] = counts.get(chord.found.kind, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def survey(
    app: Celery,
    ids: Sequence[str] | None = None,
    *,
    is_asking: bool = True,
    max_age: float | None = None,
) -> Survey:
    """Look at the live chords of an app.

    Arguments:
        app: An app with the patches.
        ids: The chords; None: all that live.
        is_asking: Ask the workers and read the queues, too, which takes seconds.
        max_age: Seconds; a chord that started longer ago is a problem by that alone.

    Raises:
        CannotTell: Result backend, broker or workers do not answer.
        LedgerMissing: The app has no ledger.
    """
    with bounded_ledger(app) as ledger:
        live = list(ledger.group_ids() if ids is None else ids)
        _check_workers(app)
        found = diagnose_all(app, live, ledger=ledger) if is_asking else examine_all(ledger, live)
    now = time.time()
    chords = []
    for diagnosis in found:
        if diagnosis.record is None and ids is None:
            continue  # it has ended meanwhile
        age = now - diagnosis.record.created if diagnosis.record else None
        is_too_old = max_age is not None and (age or 0.0) > max_age
        failed_members = diagnosis.record.failed if diagnosis.record else 0
        chords.append(Chord(diagnosis, failed_members, age, is_too_old))
    return Survey(sorted(chords, key=lambda chord: -(chord.age or 0.0)))


def _check_workers(app: Celery) -> None:
    """Have at least one worker answer.

    Raises:
        CannotTell: None does, so nothing moves; or the broker cannot be reached.
    """
    with broker_of(app) as connection:
        if not app.control.ping(timeout=ASKING_SECONDS, limit=1, connection=connection):
            raise CannotTell(
                f"no worker answered within {ASKING_SECONDS:g} s: start one, or look whether "
                f"it uses this broker ({address_of_broker(app)})"
            )


def name_of(body: Any) -> str:
    """Return the name of a body's task; of a canvas those of its tasks."""
    if body is None:
        return "?"
    kind = kind_of(body)
    if kind == "chain":
        return " | ".join(map(name_of, tasks_of(body)))
    if kind == "group":
        return f"group({', '.join(map(name_of, tasks_of(body)))})"
    if kind == "chord":
        leaves = waiting_for(body)
        return f"chord({', '.join(str(leaf.get('task')) for leaf in leaves)})"
    return str(body.get("task"))


def policy_of(app: Celery, body: Any) -> dict[str, Any]:
    """Return what JSON tells of a chord's policy."""
    policy = Policy.of(app, body)
    return {
        "tolerant": policy.tolerate,
        "max_errors": policy.max_errors,
        "error_format": policy.error_format,
        "timeout": policy.timeout,
    }


def timestamp(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
