"""Chords looked at regularly by beat: the task `chordguard.check`, and what it says in the log.

One line for each chord that is stuck or too old, one for all of them; each says its event in the
message (``event=chord_stuck group_id=... diagnosis=... ...``) and in the record's attributes, so
that alerting can match either. Nothing is mended: that is the watchdog's part.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import shared_task
from celery.schedules import BaseSchedule

from .. import masking, settings
from ..recovery.kinds import Diagnosis
from . import health
from .health import Survey

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "CHECK",
    "check",
    "setup_periodic_monitoring",
)

logger = logging.getLogger("chordguard.check")

#: The name of the task, and of its entry in the schedule of beat.
CHECK = "chordguard.check"

#: How many chords get a line of their own; all of them are counted.
LINES = 100


def setup_periodic_monitoring(
    app: Celery,
    every: float | timedelta | BaseSchedule = 60.0,
    *,
    max_age: float | timedelta | None = None,
    asks_workers: bool = True,
    queue: str | None = None,
) -> None:
    """Have beat send `chordguard.check` regularly.

    Call it where the app is created, for beat and for the workers, which get the task by it.
    Called again, the last call counts; other entries of ``beat_schedule`` stay.

    Arguments:
        app: An app with the patches.
        every: Seconds, a timedelta, or a schedule of Celery such as ``crontab(...)``.
        max_age: Seconds (or a timedelta) after which a chord is too old; None: never.
        asks_workers: Ask the workers what they work on, which finds members that nobody has,
            and keeps the task waiting for some seconds.
        queue: The queue of the task; None: where ``task_routes`` sends it.

    Raises:
        ValueError: `every` or `max_age` makes no sense.
    """
    options: dict[str, Any] = {} if queue is None else {"queue": queue}
    if not isinstance(every, BaseSchedule):
        # Checks do not pile up while no worker takes them.
        options["expires"] = every = _interval(every)
    entry = {
        "task": CHECK,
        "schedule": every,
        "kwargs": {"max_age": health.seconds_of(max_age), "asks_workers": asks_workers},
        "options": options,
    }

    def add_entry(**_: Any) -> None:
        if not app.conf.beat_schedule:
            # The default is one dictionary for all apps.
            app.conf.beat_schedule = {}
        app.conf.beat_schedule[CHECK] = entry

    if app.finalized:
        add_entry()
    else:
        # By then the schedule of the application itself is there.
        app.on_after_finalize.connect(add_entry, weak=False)


@shared_task(name=CHECK, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def check(self: Any, max_age: float | None = None, asks_workers: bool = True) -> dict[str, Any]:
    """Look for chords that are stuck or too old, and tell them in the log.

    Arguments:
        max_age: As for :func:`chordguard.check_stuck_chords`.
        asks_workers: Likewise.

    Returns:
        The counts of :class:`chordguard.monitoring.health.Survey`.
    """
    max_age = health.seconds_of(max_age)
    try:
        chords = health.live_chords(self.app, asks_workers)
    except Exception as exc:
        _tell(logging.ERROR, "chords_unreadable", {"reason": masking.told(exc)})
        raise
    survey = Survey.of(chords, max_age)
    wrong = [chord for chord in chords if health.is_wrong(chord, max_age)]
    for chord in wrong[:LINES]:
        event = "chord_stuck" if chord.is_stuck else "chord_too_old"
        _tell(logging.WARNING, event, _fields_of(chord))
    counts = asdict(survey)
    _tell(
        logging.WARNING if wrong else logging.INFO,
        "chords_checked",
        {**counts, "stuck": sum(survey.stuck.values()), "oldest_age": round(survey.oldest_age, 1)},
    )
    return counts


def _interval(every: float | timedelta) -> float:
    if not settings.is_positive_seconds(every):
        raise ValueError(
            f"every = {every!r} makes no sense: expected seconds (more than 0, up to 100 "
            "years), a timedelta or a schedule such as crontab(minute='*/5')"
        )
    return float(every.total_seconds() if isinstance(every, timedelta) else every)


def _fields_of(chord: Diagnosis) -> dict[str, Any]:
    return {
        "group_id": chord.group_id,
        "diagnosis": chord.kind,
        "age": round(health.age_of(chord), 1),
        "reason": chord.reason,
    }


def _tell(level: int, event: str, fields: Mapping[str, Any]) -> None:
    """Log an event: ``event=NAME key=value ...``, each of them an attribute of the record, too."""
    said = {"event": event, **fields}
    text = " ".join(f"{key}={_quoted(value)}" for key, value in said.items())
    logger.log(level, "%s", text, extra=said)


def _quoted(value: Any) -> str:
    """Return a value as text, in quotes where it is not one word."""
    text = str(value)
    return text if text and not set(text) & set(' "=\n\r\t') else json.dumps(text)
