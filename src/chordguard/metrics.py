"""Chords as Prometheus metrics. It needs ``pip install "chordguard[metrics]"``.

Gauges tell of the chords that are live now. They are read from the ledger when somebody asks for
them, so one process of an application is enough: register a `ChordCollector` with its exporter,
or run ``celery -A proj chords metrics``.

Counters tell of the chords that ended. Each process counts those that it ends, which are the
workers: call `count_chords` where the app is created. The children of a prefork pool count for
themselves, and for nobody to see unless prometheus_client's multiprocess mode is on: set
``PROMETHEUS_MULTIPROC_DIR`` to an empty directory before the worker starts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from . import masking, signals
from .monitoring import health
from .monitoring.health import Survey
from .recovery.kinds import KINDS, RUNNING, UNKNOWN

try:
    from prometheus_client import (
        REGISTRY,
        CollectorRegistry,
        Counter,
        Histogram,
        generate_latest,
    )
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise ImportError(f'{exc}: pip install "chordguard[metrics]"') from exc

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "COUNTED",
    "GAUGES",
    "ChordCollector",
    "count_chords",
    "exposed",
    "is_up",
    "registry_of",
)

logger = logging.getLogger("chordguard")

#: The gauges, by name, with their help.
GAUGES = {
    "celery_chord_up": "Whether the chords could be read: 1 or 0; then the other gauges are absent",
    "celery_chord_active": "Chords that have started and not ended",
    "celery_chord_stuck": "Chords that do not go on by themselves, by diagnosis",
    "celery_chord_oldest_age_seconds": "Seconds since the oldest active chord started",
    "celery_chord_missing_members": "Members of active chords that are not done",
}

#: What is counted where chords end, by name, with its help.
COUNTED = {
    "celery_chord_completed_total": "Chords that ended, by outcome",
    "celery_chord_member_errors_total": "Members that failed or were lost, of chords that ended",
    "celery_chord_wait_seconds": "Seconds from the start of a chord until it ended",
}

#: What each name begins with.
PREFIX = "celery_chord_"

#: The diagnoses of chords that are stuck.
REASONS = tuple(kind for kind in KINDS if kind not in (RUNNING, UNKNOWN))

#: The upper bounds, in seconds, of the buckets of `celery_chord_wait_seconds`.
BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)


class ChordCollector(Collector):
    """Reads the gauges when the registry is asked: ``REGISTRY.register(ChordCollector(app))``.

    One for each result backend is enough. Where the chords cannot be read, `celery_chord_up` is 0
    and the others are absent.

    Arguments:
        app: An app with the patches.
        asks_workers: As for :func:`chordguard.check_stuck_chords`; a scrape takes seconds then.
    """

    def __init__(self, app: Celery, *, asks_workers: bool = False) -> None:
        self.app = app
        self.asks_workers = asks_workers

    def describe(self) -> Iterator[Metric]:
        """Yield the gauges without values: the registry asks for no more when it takes this."""
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(name, text)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        try:
            survey = Survey.of(health.live_chords(self.app, self.asks_workers))
        except Exception as exc:  # noqa: BLE001 - it is told
            logger.warning("Cannot read the chords: %s", masking.told(exc))
            yield _gauge("up", 0)
            return
        yield _gauge("up", 1)
        yield _gauge("active", survey.active)
        stuck = GaugeMetricFamily(f"{PREFIX}stuck", GAUGES[f"{PREFIX}stuck"], labels=["reason"])
        for reason in REASONS:
            stuck.add_metric([reason], survey.stuck.get(reason, 0))
        yield stuck
        yield _gauge("oldest_age_seconds", survey.oldest_age)
        yield _gauge("missing_members", survey.missing_members)


def count_chords(app: Celery, registry: CollectorRegistry = REGISTRY) -> None:
    """Count the chords of `app` that this process and its children end.

    Call it where the app is created; a second time it changes nothing. A chord that Celery alone
    ends, without the ledger or in a worker without the patches, is not counted.

    Arguments:
        app: An app with the patches.
        registry: Where the counters are registered; apps may share one.
    """
    counters = _counters.get(registry)
    if counters is None:
        counters = _counters[registry] = _Counters(registry)
    signals.chord_ended.connect(
        counters.count, sender=app, weak=False, dispatch_uid=f"chordguard-metrics-{id(registry)}"
    )


def registry_of(app: Celery, *, asks_workers: bool = False) -> CollectorRegistry:
    """Return a registry with the gauges, and with what `PROMETHEUS_MULTIPROC_DIR` has counted."""
    registry = CollectorRegistry()
    registry.register(ChordCollector(app, asks_workers=asks_workers))
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry.register(_CountedByOthers())
    return registry


def exposed(registry: CollectorRegistry) -> tuple[str, bool]:
    """Return what Prometheus reads of a registry, and whether the chords could be read."""
    text = generate_latest(registry).decode()
    return text, is_up(text)


def is_up(text: str) -> bool:
    """Return whether the chords could be read for what Prometheus reads, given as `text`."""
    return f"\n{PREFIX}up 1.0\n" in text


class _Counters:
    """What is counted in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        completed, errors, waited = COUNTED.items()
        self.completed = Counter(*completed, ["outcome"], registry=registry)
        self.errors = Counter(*errors, registry=registry)
        self.waited = Histogram(*waited, buckets=BUCKETS, registry=registry)
        for outcome in signals.OUTCOMES:
            self.completed.labels(outcome)

    def count(self, outcome: str, errors: int, seconds: float | None, **_: Any) -> None:
        self.completed.labels(outcome).inc()
        self.errors.inc(errors)
        if seconds is not None:
            self.waited.observe(seconds)


#: One for each registry.
_counters: WeakKeyDictionary[CollectorRegistry, _Counters] = WeakKeyDictionary()


class _CountedByOthers(Collector):
    """What the processes of this machine have counted in `PROMETHEUS_MULTIPROC_DIR`."""

    def collect(self) -> Iterable[Metric]:
        metrics = MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
        return [metric for metric in metrics if metric.name.startswith(PREFIX)]

    def describe(self) -> Iterable[Metric]:
        return []


def _gauge(name: str, value: float) -> Metric:
    name = PREFIX + name
    return GaugeMetricFamily(name, GAUGES[name], value=value)
