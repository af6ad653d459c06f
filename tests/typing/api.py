"""The public API as a typed user calls it. mypy checks this file strictly; nothing runs it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import Celery, Signature, chord, group
from celery.exceptions import ChordError, ImproperlyConfigured
from celery.result import AsyncResult
from celery.schedules import crontab
from celery.utils.dispatch import Signal
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

import chordguard
from chordguard import (
    Action,
    CannotTell,
    ChordEnded,
    ChordguardError,
    ChordguardWarning,
    ChordMemberError,
    ChordMemberLost,
    ChordMembersFailed,
    Diagnosis,
    LedgerMissing,
    Outcome,
    Progress,
    Report,
    ResultTooLong,
    ResultUnreadable,
    SettingError,
    UntestedCeleryWarning,
    check_stuck_chords,
    diagnose,
    get_active_chords,
    health_check,
    install_patches,
    is_chord_error,
    patch_report,
    progress,
    raise_if_errors,
    repair,
    setup_periodic_monitoring,
    split_results,
    strict,
    to_exception,
    tolerant,
    uninstall_patches,
)
from chordguard.aio import aget, aprogress
from chordguard.metrics import (
    COUNTED,
    GAUGES,
    ChordCollector,
    count_chords,
    exposed,
    is_up,
    registry_of,
)
from chordguard.signals import chord_ended, chord_failed, chord_repaired, chord_settled

if TYPE_CHECKING:
    from typing_extensions import assert_type

    from chordguard.recovery.repair import Action


def patches(app: Celery) -> None:
    assert_type(chordguard.__version__, str)
    report = install_patches(app)
    assert_type(report, Report)
    assert_type(patch_report(app), Report)
    assert_type(report.celery, str)
    assert_type(report.notes, tuple[str, ...])
    assert_type([outcome.patch for outcome in report], list[str])
    assert_type(report["counted_parts"], Outcome)
    assert_type(report["counted_parts"].reason, str)
    uninstall_patches(app)


def following(app: Celery, result: AsyncResult[Any]) -> None:
    found = progress(result, nested=True)
    assert_type(found, Progress)
    assert_type(found.total, int | None)
    assert_type(found.done, int)
    assert_type(found.percent, float | None)
    assert_type(found.has_ended, bool)
    assert_type(found.nested, tuple[Progress, ...])
    assert_type(progress(result.id, app, may_be_slow=False).state, str)


async def awaiting(app: Celery, result: AsyncResult[Any]) -> None:
    async for found in aprogress(result.id, app, interval=1, timeout=60):
        assert_type(found, Progress)
    await aget(result, timeout=60, propagate=False)


def choices(header: list[Signature], body: Signature) -> None:
    job = chord(header, body)
    assert_type(tolerant(job), chord)
    assert_type(tolerant(job, max_errors=0.1, error_format="dict", timeout=None), chord)
    assert_type(tolerant(body, max_errors=None), Signature)
    assert_type(strict(job, timeout=timedelta(minutes=1)), chord)
    assert_type(strict(group(header)), group)


def body(results: list[Any]) -> None:
    values, errors = split_results(results)
    assert_type(values, list[Any])
    assert_type(errors, list[Any])
    assert_type(is_chord_error(results[0]), bool)
    assert_type(to_exception(errors[0]), BaseException)
    try:
        raise_if_errors(results)
    except ChordMembersFailed as failed:
        assert_type(failed.errors, list[Any])
    except ChordMemberError as failed:
        assert_type(failed.record, dict[str, Any] | None)
    except ChordMemberLost as lost:
        assert_type(lost, ChordMemberLost)


def errors() -> None:
    errors: list[type[Exception]] = [ChordError, ChordMemberError, ChordMemberLost]
    errors += [ChordguardError, CannotTell, ChordEnded, ResultTooLong, ResultUnreadable]
    errors += [ChordMembersFailed, ImproperlyConfigured, LedgerMissing, SettingError]
    warnings: list[type[UserWarning]] = [ChordguardWarning, UntestedCeleryWarning]
    assert warnings
    assert errors


def stuck_chords(app: Celery) -> None:
    diagnosis = diagnose(app, "5243c874-a8cb-420f-a689-6e26892e59cf")
    assert_type(diagnosis, Diagnosis)
    assert_type(diagnosis.kind, str)
    assert_type(diagnosis.is_stuck, bool)
    assert_type(diagnosis.timeout, float | None)
    assert_type(diagnosis.missing, tuple[str, ...])
    actions = repair(app, diagnosis.group_id, dry_run=False, resend=True)
    assert_type(diagnose(app, AsyncResult("id")), Diagnosis)
    assert_type(actions, list[Action])
    assert_type(actions[0].is_done, bool | None)


def monitoring(app: Celery) -> None:
    assert_type(get_active_chords(app), list[Diagnosis])
    assert_type(check_stuck_chords(app, 3600.0), list[Diagnosis])
    assert_type(check_stuck_chords(app, timedelta(hours=1), asks_workers=False), list[Diagnosis])
    assert_type(health_check(app, 3600, ping=False, asks_workers=True), dict[str, Any])
    setup_periodic_monitoring(app)
    setup_periodic_monitoring(app, timedelta(minutes=1), max_age=3600, queue="checks")
    setup_periodic_monitoring(app, crontab(minute="*/5"), asks_workers=False)


def metrics(app: Celery) -> None:
    collector: Collector = ChordCollector(app, asks_workers=True)
    registry = registry_of(app)
    assert_type(registry, CollectorRegistry)
    registry.register(collector)
    count_chords(app)
    count_chords(app, registry)
    text, could_be_read = exposed(registry)
    assert_type(could_be_read, bool)
    assert_type(is_up(text), bool)
    assert_type(GAUGES, dict[str, str])
    assert_type(COUNTED, dict[str, str])


def signals() -> None:
    sent: list[Signal] = [chord_ended, chord_failed, chord_repaired, chord_settled]
    assert sent
