"""Beat has chords checked, and the log says what is the matter with them."""

from __future__ import annotations

import logging
import math
import re
from datetime import timedelta

import pytest
from celery import Celery
from celery.schedules import crontab

from chordguard import install_patches, repair, setup_periodic_monitoring
from chordguard.monitoring.periodic import CHECK
from tests.app_factory import make_app
from tests.chords import stuck
from tests.harness import running_worker, wait_until
from tests.monitoring import periodic


def make(**settings) -> Celery:
    app = Celery("periodic", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.update(settings)
    install_patches(app)
    return app


def schedule_of(app):
    app.finalize()
    return app.conf.beat_schedule


MINE = {"task": "proj.mine", "schedule": 10.0}


def test_check_is_added_to_the_schedule_that_is_there():
    app = make(beat_schedule={"mine": MINE})

    setup_periodic_monitoring(app, every=30, max_age=timedelta(hours=1), queue="checks")

    assert {
        "mine": MINE,
        CHECK: {
            "task": "chordguard.check",
            "schedule": 30.0,
            "kwargs": {"max_age": 3600.0, "asks_workers": True},
            "options": {"queue": "checks", "expires": 30.0},
        },
    } == schedule_of(app)


def test_schedule_that_is_set_later_keeps_the_check():
    app = make()

    setup_periodic_monitoring(app)
    app.conf.beat_schedule = {"mine": MINE}

    assert {"mine", CHECK} == set(schedule_of(app))


@pytest.mark.parametrize("own", [{}, {"mine": MINE}])
def test_schedule_behind_a_namespace_gets_the_check(own):
    app = Celery("periodic", set_as_current=False)
    app.config_from_object({"CELERY_BEAT_SCHEDULE": dict(own)}, namespace="CELERY")

    setup_periodic_monitoring(app)

    assert {*own, CHECK} == set(schedule_of(app))


def test_last_call_counts():
    app = make()

    setup_periodic_monitoring(app, every=30)
    setup_periodic_monitoring(app, every=timedelta(minutes=1))
    assert 60.0 == schedule_of(app)[CHECK]["schedule"]

    setup_periodic_monitoring(app, every=crontab(minute="*/5"))
    entry = schedule_of(app)[CHECK]
    assert (crontab(minute="*/5"), {}) == (entry["schedule"], entry["options"])


def test_other_apps_are_left_alone():
    app, other = make(), make()

    setup_periodic_monitoring(app)

    assert [CHECK] == list(schedule_of(app))
    assert {} == schedule_of(other)


#: Not a time, or one for which beat would raise an OverflowError.
TOO_LONG = [math.nan, math.inf, 1e300, 10**400, timedelta.max]


@pytest.mark.parametrize("every", [0, -1, True, None, "60", timedelta(0), *TOO_LONG], ids=repr)
def test_interval_that_makes_no_sense_is_refused(every):
    with pytest.raises(ValueError, match=r"every = .* makes no sense: expected seconds"):
        setup_periodic_monitoring(make(), every=every)


@pytest.mark.parametrize("max_age", [0, *TOO_LONG], ids=repr)
def test_age_that_makes_no_sense_is_refused(max_age):
    with pytest.raises(ValueError, match=r"max_age = .* makes no sense"):
        setup_periodic_monitoring(make(), max_age=max_age)


@pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])
def test_beat_tells_of_a_stuck_chord_until_it_is_mended(clusters, backend_kind, gate, tmp_path):
    cluster = clusters(backend_kind, settings=stuck.ALONE)
    result = stuck.claim_expired(cluster, gate)
    config = {**cluster.config, "tasks": periodic.__name__}
    names = [config["name"], periodic.queue_of(config["name"])]

    with running_worker(
        config, beat=True, schedule_filename=str(tmp_path / "beat"), queues=names, concurrency=1
    ) as worker:
        told = rf"event=chord_stuck group_id={result.parent.id} diagnosis=claim-expired age=[\d.]+ "
        wait_until(lambda: re.search(told + r'reason="', worker.log_text()), 20, "the event")
        assert " event=chords_checked active=1 stuck=1 too_old=0 " in worker.log_text()

        repair(cluster.app, result.parent.id, dry_run=False)

        fine = " event=chords_checked active=0 stuck=0 too_old=0 "
        wait_until(lambda: fine in worker.log_text(), 20, "all to be well")
    assert [1, 2] == cluster.run(result)


def events(caplog):
    return [record for record in caplog.records if record.name == "chordguard.check"]


def test_eager_check_tells_too(clusters, gate, caplog):
    cluster = clusters("redis", settings=stuck.ALONE)
    result = stuck.waiting_chord(cluster, gate)
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    config["settings"]["task_always_eager"] = True
    app = make_app({**config, "tasks": periodic.__name__}, patched=True)
    caplog.set_level(logging.INFO, "chordguard.check")
    try:
        done = app.tasks[CHECK].apply_async(kwargs={"max_age": 0.001, "asks_workers": False})
    finally:
        gate.open()

    assert (1, {}, 1) == tuple(map(done.get().get, ("active", "stuck", "too_old")))
    one, summary = events(caplog)
    assert ("chord_too_old", result.parent.id, "running") == (
        one.event,
        one.group_id,
        one.diagnosis,
    )
    assert f"event=chord_too_old group_id={result.parent.id} " in one.getMessage()
    assert ("chords_checked", 1, logging.WARNING) == (
        summary.event,
        summary.too_old,
        summary.levelno,
    )
    assert [1, 2] == cluster.run(result)


def test_what_cannot_be_read_is_an_event(caplog):
    app = make()
    setup_periodic_monitoring(app)
    app.finalize()

    done = app.tasks[CHECK].apply()

    assert "FAILURE" == done.state
    (event,) = events(caplog)
    assert ("chords_unreadable", logging.ERROR) == (event.event, event.levelno)
    assert "keeps no ledger" in event.getMessage()
