"""Whether all is well with the chords of an app: for probes, alerts and the periodic check.

Nothing is mended here. What cannot be read is said; it never counts as healthy.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .. import masking, settings
from ..errors import CannotTell
from ..ledger.access import bounded_ledger
from ..recovery import kinds
from ..recovery.diagnosis import diagnose_all
from ..recovery.evidence import examine_all
from ..recovery.kinds import Diagnosis
from ..upstream.workers import ASKING_SECONDS, ping_workers

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "HEALTHY",
    "UNHEALTHY",
    "UNKNOWN",
    "Survey",
    "age_of",
    "check_stuck_chords",
    "get_active_chords",
    "health_check",
    "seconds_of",
)

#: No chord is stuck, none is too old.
HEALTHY = "healthy"
#: A chord is stuck, or too old.
UNHEALTHY = "unhealthy"
#: Something that had to be read could not be read.
UNKNOWN = "unknown"

#: Seconds for which the answer of a worker counts.
PING_KEPT = 10.0

#: Seconds for which an answer is given again, at least and at most.
KEPT = 1.0
KEPT_MOST = 30.0

#: How many times as long as the chords took to read an answer is kept, so that a probe costs at
#: most 5 % of the time (more where that would be older than KEPT_MOST).
KEPT_TIMES = 20

#: How many chords an answer names.
NAMED = 10


@dataclass(frozen=True)
class Survey:
    """The live chords of an app, counted.

    Attributes:
        active: How many there are.
        stuck: How many are stuck, by diagnosis.
        too_old: How many are older than they may be.
        oldest_age: Seconds since the oldest one started; 0 where there is none.
        missing_members: How many members are not done.
    """

    active: int
    stuck: dict[str, int]
    too_old: int
    oldest_age: float
    missing_members: int

    @classmethod
    def of(cls, chords: Sequence[Diagnosis], max_age: float | None = None) -> Survey:
        """Count `chords`; `max_age` is how many seconds old they may be."""
        ages = [age_of(chord) for chord in chords]
        records = [chord.record for chord in chords if chord.record is not None]
        return cls(
            len(chords),
            dict(Counter(chord.kind for chord in chords if chord.is_stuck)),
            0 if max_age is None else sum(age > max_age for age in ages),
            max(ages, default=0.0),
            sum(max(0, record.size - record.returned) for record in records if record.size),
        )

    def __str__(self) -> str:
        parts = [f"{self.active} active"]
        parts += [f"{count} {kind}" for kind, count in sorted(self.stuck.items())]
        if self.too_old:
            parts.append(f"{self.too_old} too old")
        return f"chords: {', '.join(parts)}"


def get_active_chords(app: Celery) -> list[Diagnosis]:
    """Return the chords that have started and not ended, the oldest first.

    They are diagnosed from the ledger and the stored results: no worker is asked.

    Arguments:
        app: An app with the patches.

    Raises:
        LedgerMissing: The app has no ledger.
        CannotTell: The result backend cannot be read.
    """
    return live_chords(app, asks_workers=False)


def check_stuck_chords(
    app: Celery, max_age: float | timedelta | None = None, *, asks_workers: bool = True
) -> list[Diagnosis]:
    """Return the chords that are stuck or too old, the oldest first.

    Arguments:
        app: An app with the patches.
        max_age: Seconds (or a timedelta) since its start after which a chord is too old, although
            nothing may be wrong with it; None: never.
        asks_workers: Ask the workers what they work on, and read the queues, which takes
            seconds. Without it a lost member is found only when its chord is overdue.

    Raises:
        LedgerMissing: The app has no ledger.
        CannotTell: The result backend cannot be read.
        ValueError: `max_age` makes no sense.
    """
    most = seconds_of(max_age)
    return [chord for chord in live_chords(app, asks_workers) if is_wrong(chord, most)]


def health_check(
    app: Celery,
    max_age: float | timedelta | None = None,
    *,
    ping: bool = True,
    asks_workers: bool = False,
) -> dict[str, Any]:
    """Tell whether all is well with the chords of an app.

    It is made for a probe: an answer comes within five seconds and is given again for a second,
    or for twenty times as long as the chords took to read, at most half a minute. One thread at
    a time looks for it.

    Arguments:
        app: An app with the patches.
        max_age: As for :func:`check_stuck_chords`.
        ping: Have a worker answer, once in ten seconds. Turn it off for a pool that does not
            answer while it works (solo).
        asks_workers: As for :func:`check_stuck_chords`. It takes seconds.

    Returns:
        What JSON can carry: ``status`` (:data:`HEALTHY`, :data:`UNHEALTHY` or :data:`UNKNOWN`),
        ``reason`` (a sentence), the counts of :class:`Survey`, ``chords`` (up to :data:`NAMED`
        that are stuck or too old) and ``checked`` (Unix time). A count that is not known is None.

    Raises:
        ValueError: `max_age` makes no sense. Nothing else: what cannot be read is unknown.
    """
    probe = _probes.setdefault(app, _Probe())
    return probe.answer(app, seconds_of(max_age), ping, asks_workers)


def live_chords(app: Celery, asks_workers: bool) -> list[Diagnosis]:
    """Return what `get_active_chords` does, where asked for with what workers and queues tell.

    It raises what that does.
    """
    with bounded_ledger(app) as ledger:
        if asks_workers:
            chords = diagnose_all(app, ledger=ledger)
        else:
            chords = examine_all(ledger, ledger.group_ids())
    # One without a record has ended while it was looked at.
    return sorted((c for c in chords if c.record is not None), key=age_of, reverse=True)


def is_wrong(chord: Diagnosis, max_age: float | None) -> bool:
    """Tell whether a chord is stuck, or older than `max_age` seconds."""
    return chord.is_stuck or (max_age is not None and age_of(chord) > max_age)


def age_of(chord: Diagnosis) -> float:
    """Return the seconds since a chord started."""
    return max(0.0, time.time() - chord.record.created) if chord.record else 0.0


def seconds_of(max_age: float | timedelta | None) -> float | None:
    """Return `max_age` in seconds.

    Raises:
        ValueError: It is not None, a number of more than 0 (up to a century), or such a timedelta.
    """
    if max_age is None:
        return None
    if not settings.is_positive_seconds(max_age):
        raise ValueError(
            f"max_age = {max_age!r} makes no sense: expected None, seconds (more than 0, up to 100 "
            "years) or a timedelta"
        )
    return float(max_age.total_seconds() if isinstance(max_age, timedelta) else max_age)


def _answer(
    status: str, reason: str, survey: Survey | None = None, chords: Sequence[Diagnosis] = ()
) -> dict[str, Any]:
    names = Survey.__dataclass_fields__
    return {
        "status": status,
        "reason": reason,
        **{name: getattr(survey, name, None) for name in names},
        "chords": [
            {
                "group_id": chord.group_id,
                "diagnosis": chord.kind,
                "reason": chord.reason,
                "age": round(age_of(chord), 1),
            }
            for chord in chords[:NAMED]
        ],
        "checked": time.time(),
    }


class _Probe:
    """The answers about one app, each kept for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Any, tuple[float, dict[str, Any]]] = {}
        #: How many seconds the chords took to read.
        self._reading = 0.0
        #: The worker that answered last, and until when that counts.
        self._worker: tuple[str, float] = ("", 0.0)

    def answer(
        self, app: Celery, max_age: float | None, ping: bool, asks_workers: bool
    ) -> dict[str, Any]:
        with self._lock:
            question = (max_age, ping, asks_workers)
            until, answer = self._kept.get(question, (0.0, {}))
            if time.monotonic() >= until:
                self._reading = 0.0
                answer = self._look(app, *question)
                kept = min(KEPT_MOST, max(KEPT, KEPT_TIMES * self._reading))
                self._kept[question] = (time.monotonic() + kept, answer)
            return dict(answer)

    def _look(
        self, app: Celery, max_age: float | None, ping: bool, asks_workers: bool
    ) -> dict[str, Any]:
        started = time.monotonic()
        try:
            chords = live_chords(app, asks_workers)
        except Exception as exc:  # noqa: BLE001 - it is told
            # It is tried again soon: waiting costs nothing.
            return _answer(UNKNOWN, masking.told(exc))
        self._reading = time.monotonic() - started
        survey = Survey.of(chords, max_age)
        wrong = [chord for chord in chords if is_wrong(chord, max_age)]
        if wrong:
            return _answer(UNHEALTHY, str(survey), survey, wrong)
        unclear = [chord for chord in chords if chord.kind == kinds.UNKNOWN]
        if unclear:
            return _answer(UNKNOWN, f"chord {unclear[0]}", survey, unclear)
        if ping:
            try:
                self._have_a_worker_answer(app)
            except Exception as exc:  # noqa: BLE001 - it is told
                return _answer(UNKNOWN, masking.told(exc), survey)
        return _answer(HEALTHY, str(survey), survey)

    def _have_a_worker_answer(self, app: Celery) -> None:
        name, until = self._worker
        if time.monotonic() < until:
            return
        # Asked by name it is the only one to answer, and others are not waited for.
        answers = ping_workers(app, [name]) if name else []
        # Asked twice, one that is busy for a moment is not said to be away.
        answers = answers or ping_workers(app) or ping_workers(app)
        if not answers:
            raise CannotTell(f"no worker answered within {ASKING_SECONDS:g} s")
        self._worker = (answers[0], time.monotonic() + PING_KEPT)


#: One for each app.
_probes: WeakKeyDictionary[Any, _Probe] = WeakKeyDictionary()
