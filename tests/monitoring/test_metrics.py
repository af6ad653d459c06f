"""Prometheus metrics tell of real chords: those that are live, and those that ended."""

from __future__ import annotations

import re

import pytest
from celery import Celery, chord
from prometheus_client import CollectorRegistry, generate_latest

from chordguard import repair, signals, tolerant
from chordguard.metrics import COUNTED, GAUGES, REASONS, ChordCollector, count_chords, registry_of
from tests.app_factory import make_app
from tests.chords import stuck
from tests.harness import running_worker, wait_until
from tests.monitoring import counted
from tests.tasks import named

#: No other file's chords are on it.
pytestmark = pytest.mark.cluster(settings=stuck.ALONE, shared_by=__name__)

BACKENDS = pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)


def gauges_of(app) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ChordCollector(app))
    return registry


def value(registry, name, **labels):
    return registry.get_sample_value(f"celery_chord_{name}", labels)


@BACKENDS
def test_gauges_tell_of_live_chords(cluster, gate):
    gauges = gauges_of(cluster.app)
    assert (1, 0, 0, 0) == tuple(
        value(gauges, name) for name in ("up", "active", "oldest_age_seconds", "missing_members")
    )

    result = stuck.waiting_chord(cluster, gate)
    try:
        assert (1, 1) == (value(gauges, "active"), value(gauges, "missing_members"))
        assert 0 < value(gauges, "oldest_age_seconds") < 60
        assert [0] * len(REASONS) == [value(gauges, "stuck", reason=name) for name in REASONS]
    finally:
        gate.open()
    assert [1, 2] == cluster.run(result)


@BACKENDS
def test_chord_that_is_stuck_and_mended_is_told(cluster, gate):
    gauges, counters = gauges_of(cluster.app), CollectorRegistry()
    count_chords(cluster.app, counters)
    count_chords(cluster.app, counters)
    result = stuck.claim_expired(cluster, gate)
    assert 1 == value(gauges, "stuck", reason="claim-expired")

    # It is ended here, in a process that counts.
    repair(cluster.app, result.parent.id, dry_run=False)

    assert (0, 0) == (value(gauges, "stuck", reason="claim-expired"), value(gauges, "active"))
    assert (1, 0) == (
        value(counters, "completed_total", outcome="succeeded"),
        value(counters, "completed_total", outcome="failed"),
    )
    assert (1, 0) == (value(counters, "wait_seconds_count"), value(counters, "member_errors_total"))
    assert 0 < value(counters, "wait_seconds_sum") < 60
    assert [1, 2] == cluster.run(result)


@BACKENDS
@pytest.mark.parametrize("is_counted", [True, False], ids=["ledger", "polled"])
def test_every_process_counts_the_chords_that_it_ends(
    clusters, backend_kind, is_counted, tmp_path, monkeypatch
):
    if backend_kind == "redis" and not is_counted:
        pytest.skip("Celery alone ends them")
    folder = tmp_path / "counts"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    base = clusters(backend_kind, settings={"chord_ledger": is_counted})
    # The worker of the cluster does not count: this one has a queue of its own.
    queue = f"{base.stack.name}-counted"
    settings = {**base.config["settings"], "task_default_queue": queue}
    config = {**base.config, "settings": settings}
    app = make_app(config, patched=True)
    t = named(app)
    bad = [t.echo.s(1), t.fail.s(), t.fail.s()]
    canvases = [
        chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()),
        chord(bad, t.tsum.s()),
        tolerant(chord(bad, t.collect.s())),
    ]
    registry = registry_of(app)
    with running_worker({**config, "tasks": counted.__name__}):
        for canvas in canvases:
            base.outcome(canvas)
        outcomes = {
            outcome: wait_until(
                lambda name=outcome: value(registry, "completed_total", outcome=name),
                what=outcome,
            )
            for outcome in signals.OUTCOMES
        }
        text = generate_latest(registry).decode()
    app.close()

    assert dict.fromkeys(signals.OUTCOMES, 1) == outcomes
    assert 4 == value(registry, "member_errors_total")
    # Of a chord that is polled nobody knows when it started.
    assert (3 if is_counted else 0) == (value(registry, "wait_seconds_count") or 0)
    assert f"celery_chord_up {int(is_counted)}.0" in text
    named_metrics = re.findall("^# TYPE ([a-z_]+)", text, re.MULTILINE)
    assert {"celery_chord"} == {name[:12] for name in named_metrics}


def test_chords_that_cannot_be_read_are_not_told_as_none(caplog):
    app = Celery("nowhere", set_as_current=False, backend="cache+memory://")

    gauges = gauges_of(app)

    assert (0, None) == (value(gauges, "up"), value(gauges, "active"))
    assert "Cannot read the chords: " in caplog.text


def test_every_metric_is_listed(monkeypatch):
    registry = CollectorRegistry()
    app = Celery("nowhere", set_as_current=False, backend="cache+memory://")
    count_chords(app, registry)

    counted_names = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in registry.collect()
    }
    described = {metric.name for metric in ChordCollector(app).describe()}
    assert (set(COUNTED), set(GAUGES)) == (counted_names, described)


def test_apps_share_a_registry():
    registry = CollectorRegistry()
    first, second = (Celery(name, set_as_current=False) for name in ("first", "second"))
    for app in (first, first, second):
        count_chords(app, registry)

    for app in (first, second, Celery("other", set_as_current=False)):
        signals.chord_ended.send(
            sender=app, group_id="g", outcome=signals.FAILED, errors=2, seconds=None
        )

    assert (2, 4, 0) == (
        value(registry, "completed_total", outcome="failed"),
        value(registry, "member_errors_total"),
        value(registry, "wait_seconds_count"),
    )
