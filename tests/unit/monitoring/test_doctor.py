"""The doctor finds what endangers the chords of an app and says what to do."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery

import chordguard
from chordguard import errors, install_patches
from chordguard.engine.report import Outcome
from chordguard.engine.versions import celery_5_3, celery_5_7, celery_version
from chordguard.monitoring import doctor
from chordguard.monitoring.defects import defects
from chordguard.monitoring.doctor import Finding, examine
from chordguard.monitoring.polls import short_polling
from chordguard.upstream.apps import prepare_app
from chordguard.upstream.hooks import UNLOCK
from tests.unit.monitoring.plain_backend import URL as PLAIN

SECRET = "hunter2"
REDIS = f"redis://:{SECRET}@localhost:1/0"


#: Chords on a SQL backend are polled.
POLLED = {"chord_ledger": False}

#: Besides, nothing keeps the results that are ignored.
NOT_KEPT = {**POLLED, "chord_fix_ignored_results": False}


def make_app(backend: str = REDIS, patched: bool = True, **settings: Any) -> Celery:
    app = Celery("examined", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(settings)
    if patched:
        install_patches(app)
    return app


#: On Redis, nothing but Celery's own keys tells of a chord.
NOT_COUNTED = [{"chord_ledger": False}, {"chord_fix_counted_parts": False}]

before_5_7 = pytest.mark.skipif(
    celery_version() >= celery_5_7, reason="Celery 5.7 does not have the defect"
)


@pytest.fixture
def sqlite(tmp_path):
    return f"db+sqlite:///{tmp_path / 'results.sqlite'}"


def subjects(app: Celery) -> list[str]:
    return [finding.subject for finding in examine(app)]


def only_finding(app: Celery) -> Finding:
    findings = examine(app)
    assert 1 == len(findings), findings
    return findings[0]


def warning(app: Celery) -> Any:
    app.finalize()
    return short_polling(app, app.tasks[UNLOCK])


# Nothing to find


def test_patched_app_with_defaults_is_fine_on_redis():
    assert [] == examine(make_app())


def test_patched_app_with_defaults_is_fine_on_sql(sqlite):
    assert [] == examine(make_app(sqlite))


# The patches


def test_app_without_patches_is_told_how_to_install_them():
    finding = only_finding(make_app(patched=False))

    assert "install_patches" == finding.subject
    assert "chordguard.install_patches(app)" in finding.remedy


def test_setting_that_celery_alone_ignores():
    app = make_app(patched=False, chord_unlock_max_retries=5000, chord_propagate_errors=False)

    assert ["install_patches", "chord_propagate_errors, chord_unlock_max_retries"] == subjects(app)


def test_untested_celery(monkeypatch):
    monkeypatch.setattr(celery, "__version__", "5.99.0")
    app = make_app(patched=False)

    assert ["install_patches", "Celery 5.99.0"] == subjects(app)


def test_fix_that_does_not_act(monkeypatch):
    app = make_app()
    failed = Outcome("header_order", ("B10",), "failed", "its target is not there")
    monkeypatch.setattr(doctor, "outcomes", lambda app: [failed])

    finding = only_finding(app)

    assert "the fix header_order" == finding.subject
    assert "its target is not there" in finding.danger


# Settings that make no sense


def test_every_invalid_setting_is_told():
    app = make_app(patched=False, chord_max_errors=-1, chord_timeout="soon")

    dangers = [f.danger for f in examine(app) if f.subject == "invalid setting"]

    assert ["chord_max_errors", "chord_timeout"] == [danger.split()[0] for danger in dangers]


def test_invalid_setting_of_an_app_configured_after_the_patches_does_not_crash(sqlite):
    app = Celery("examined", broker="memory://", backend=sqlite, set_as_current=False)
    install_patches(app)
    app.conf.update(chord_propagate_errors="no", result_expires=60)

    findings = examine(app)

    assert ["invalid setting", "result_expires"] == [finding.subject for finding in findings]
    assert "look again" in findings[0].remedy


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("chord_unlock_retry_dely", "did you mean chord_unlock_retry_delay?"),
        ("chord_fix_header_oder", "did you mean chord_fix_header_order?"),
        ("chord_colour", "remove it"),
    ],
)
def test_unknown_setting(name, remedy):
    class Settings:
        broker_url = "memory://"
        result_backend = REDIS

    setattr(Settings, name, True)
    app = Celery("examined", set_as_current=False)
    app.config_from_object(Settings)

    assert (name, remedy) in [(f.subject, f.remedy) for f in examine(app)]


def test_unknown_setting_in_a_namespace():
    class Settings:
        CELERY_BROKER_URL = "memory://"
        CELERY_RESULT_BACKEND = REDIS
        CELERY_CHORD_UNLOCK_RETRY_DELY = 1

    app = Celery("examined", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")

    assert "chord_unlock_retry_dely" in subjects(app)


# Short polling


@pytest.mark.parametrize(
    ("annotations", "key"),
    [
        ({UNLOCK: {"max_retries": 3}}, UNLOCK),
        ([{"other": {}}, {UNLOCK: {"max_retries": 3}}], UNLOCK),
        ({"*": {"max_retries": 3}}, "*"),
    ],
)
@pytest.mark.parametrize("patched", [True, False])
def test_annotation_that_bounds_the_polls(sqlite, annotations, key, patched):
    ledger = POLLED if patched else {}
    app = make_app(sqlite, patched, task_annotations=annotations, **ledger)

    text = warning(app)

    assert text.startswith(f"task_annotations[{key!r}]['max_retries'] = 3: a chord is polled for")
    assert "about 3 s only" in text
    assert "\n" not in text
    assert text.partition(": ")[0] in subjects(app)


def test_setting_that_bounds_the_polls(sqlite):
    app = make_app(sqlite, chord_unlock_max_retries=10, chord_unlock_retry_delay=0.5, **POLLED)

    assert "chord_unlock_max_retries = 10: a chord is polled for about 5 s only" in warning(app)


def test_lower_bound_is_told(sqlite):
    annotations = {UNLOCK: {"max_retries": 3}}
    app = make_app(sqlite, chord_unlock_max_retries=10, task_annotations=annotations, **POLLED)

    assert warning(app).startswith("task_annotations")


@pytest.mark.parametrize(
    "settings",
    [
        {"chord_unlock_max_retries": 60},
        {"chord_unlock_max_retries": 6, "chord_unlock_retry_delay": timedelta(seconds=10)},
        {"chord_unlock_max_retries": 6, "chord_unlock_retry_backoff": 2.0},
        {"chord_unlock_max_retries": None},
    ],
)
def test_polling_for_a_minute_is_long_enough(sqlite, settings):
    assert warning(make_app(sqlite, **settings, **POLLED)) is None


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"chord_unlock_max_retries": 0}, "30"),
        ({"chord_unlock_max_retries": 2, "chord_unlock_first_delay": 5}, "20"),
        ({"chord_unlock_max_retries": 3, "chord_unlock_first_delay": 0}, "7"),
        ({"chord_unlock_max_retries": 5, "chord_unlock_retry_delay": 2}, "40"),
        ({"chord_unlock_max_retries": 1, "chord_timeout": timedelta(seconds=10)}, "20"),
    ],
)
def test_bound_on_the_looks_at_a_counted_chord(sqlite, settings, seconds):
    text = warning(make_app(sqlite, **settings))

    bound = settings["chord_unlock_max_retries"]
    assert text.startswith(f"chord_unlock_max_retries = {bound}: a chord is looked at for about ")
    assert f"about {seconds} s only, since each look is a retry of {UNLOCK}" in text
    assert text.endswith("is settled without the members that are still running")


def test_annotation_that_bounds_the_looks_at_a_counted_chord(sqlite):
    app = make_app(sqlite, task_annotations={UNLOCK: {"max_retries": 0}})

    text = warning(app)

    assert text.startswith(f"task_annotations[{UNLOCK!r}]['max_retries'] = 0: ")
    assert text.partition(": ")[0] in subjects(app)


@pytest.mark.parametrize(
    "settings",
    [
        {"chord_unlock_max_retries": 1},
        {"chord_unlock_max_retries": 3, "chord_unlock_first_delay": 8},
        {"chord_unlock_max_retries": 0, "chord_unlock_first_delay": timedelta(minutes=1)},
        {"chord_unlock_max_retries": 3, "chord_unlock_retry_delay": 10},
        {"task_annotations": {UNLOCK: {"max_retries": 3}}},
        # Its delays are those of a counted chord without the fix that bounds polls, too.
        {"chord_unlock_max_retries": 3, "chord_fix_bounded_unlock": False},
    ],
)
def test_looking_at_a_counted_chord_for_a_minute_is_long_enough(sqlite, settings):
    assert warning(make_app(sqlite, **settings)) is None


@pytest.mark.parametrize("switch", ["chord_ledger", "chord_fix_counted_chords"])
def test_chords_are_polled_without_the_ledger(sqlite, switch):
    assert "is polled for about 3 s" in warning(
        make_app(sqlite, chord_unlock_max_retries=3, **{switch: False})
    )


def test_chords_are_polled_in_a_database_that_is_not_counted_in(sqlite, monkeypatch):
    monkeypatch.setattr("chordguard.ledger.tables.DIALECTS", ("postgresql",))

    assert "is polled for about 3 s" in warning(make_app(sqlite, chord_unlock_max_retries=3))


def test_nothing_is_polled_on_redis():
    annotations = {"*": {"max_retries": 3}}

    assert [] == examine(make_app(task_annotations=annotations))


def test_our_bound_does_not_count_without_the_patches(sqlite):
    assert warning(make_app(sqlite, patched=False, chord_unlock_max_retries=3)) is None


def test_our_bound_does_not_count_with_the_fix_switched_off(sqlite):
    switches = {**POLLED, "chord_fix_bounded_unlock": False}

    assert warning(make_app(sqlite, chord_unlock_max_retries=3, **switches)) is None


def test_our_bound_counts_for_counted_chords_with_that_fix_switched_off(sqlite):
    app = make_app(sqlite, chord_unlock_max_retries=0, chord_fix_bounded_unlock=False)

    assert warning(app).endswith("is settled without the members that are still running")


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({}, "remove it: a chord that is counted"), (POLLED, "use chord_unlock_retry_backoff, ")],
)
def test_backoff_in_an_annotation_is_useless(sqlite, settings, remedy):
    annotations = {UNLOCK: {"retry_backoff": True, "retry_backoff_max": 60}}

    finding = only_finding(make_app(sqlite, task_annotations=annotations, **settings))

    assert "retry_backoff, retry_backoff_max has no effect on polls" == finding.danger
    assert finding.remedy.startswith(remedy)


# Results that expire or are not kept


@pytest.mark.parametrize("expires", [60, timedelta(minutes=59)])
def test_results_that_expire_soon(sqlite, expires):
    assert ["result_expires"] == subjects(make_app(sqlite, result_expires=expires))


def test_results_that_expire_before_the_chord_times_out(sqlite):
    settings: dict[str, Any] = {"result_expires": 7200, "chord_timeout": timedelta(hours=3)}

    finding = only_finding(make_app(sqlite, **settings))

    assert "result_expires" == finding.subject
    assert "chord_timeout = 10800" in finding.danger
    # There a chord that is counted keeps what it needs until it is settled.
    assert [] == examine(make_app(**settings))
    # Celery alone does not know this timeout.
    assert ["install_patches", "chord_timeout"] == subjects(make_app(sqlite, False, **settings))


@pytest.mark.parametrize("not_counted", NOT_COUNTED)
def test_size_of_a_chord_that_expires_soon(not_counted):
    finding = only_finding(make_app(result_expires=60, **not_counted))

    assert ("result_expires", "B8") == (finding.subject, finding.defect)
    assert [] == examine(make_app(result_expires=60))


@pytest.mark.parametrize("not_counted", NOT_COUNTED)
@pytest.mark.parametrize("expires", [0, None])
def test_keys_that_never_expire(sqlite, expires, not_counted):
    finding = only_finding(make_app(result_expires=expires, **not_counted))

    assert ("result_expires", "D1") == (finding.subject, finding.defect)
    assert [] == examine(make_app(result_expires=expires))
    assert [] == examine(make_app(sqlite, result_expires=expires))


@pytest.mark.skipif(celery_version() < celery_5_7, reason="a setting of Celery 5.7")
def test_chord_keys_may_live_longer_than_results():
    settings: dict[str, Any] = {
        "result_expires": 600,
        "result_chord_expires": 86400,
        "chord_ledger": False,
    }

    assert [] == examine(make_app(**settings))


def test_no_results_at_all(sqlite):
    assert ["task_ignore_result"] == subjects(make_app(sqlite, task_ignore_result=True, **NOT_KEPT))
    assert [] == examine(make_app(sqlite, task_ignore_result=True, **POLLED))
    assert [] == examine(make_app(sqlite, task_ignore_result=True))
    assert [] == examine(make_app(task_ignore_result=True))


def add_tasks_that_keep_no_result(app: Celery) -> Celery:
    def do() -> None:
        pass

    for number in range(7):
        app.task(name=f"quiet.{number}", ignore_result=True, shared=False)(do)
    app.task(name="loud", shared=False)(do)
    return app


def test_tasks_that_keep_no_result_in_a_chord_that_is_polled(sqlite):
    finding = only_finding(add_tasks_that_keep_no_result(make_app(sqlite, **NOT_KEPT)))

    assert "ignore_result" == finding.subject
    assert "quiet.0, quiet.1, quiet.2, quiet.3, quiet.4 and 2 more" in finding.danger
    assert finding.danger.endswith("until chord_timeout")
    assert "chord_fix_ignored_results = True" in finding.remedy


@pytest.mark.parametrize(
    ("patched", "settings"),
    [(False, {}), (True, {**NOT_KEPT, "chord_fix_bounded_unlock": False})],
)
def test_tasks_that_keep_no_result_where_nothing_bounds_the_polls(sqlite, patched, settings):
    app = add_tasks_that_keep_no_result(make_app(sqlite, patched, **settings))

    (finding,) = (f for f in examine(app) if f.subject == "ignore_result")

    assert finding.danger.endswith("for ever")


def test_tasks_that_keep_no_result_in_a_chord_that_is_counted(sqlite):
    assert [] == examine(add_tasks_that_keep_no_result(make_app(sqlite)))


# Backends and modes


def test_app_without_result_backend():
    app = Celery("examined", broker="memory://", set_as_current=False)
    install_patches(app)

    assert "no result backend" in only_finding(app).danger


def test_unsupported_result_backend():
    assert ["result_backend"] == subjects(make_app("cache+memory://"))


def test_result_backend_that_cannot_be_loaded():
    finding = only_finding(make_app("nonsense://"))

    assert "result_backend" == finding.subject
    assert "cannot be loaded" in finding.danger


def test_eager_mode():
    assert ["task_always_eager"] == subjects(make_app(task_always_eager=True))


# Defects that a patch closes, or that the backend does not have


#: Settings that show a defect of Celery where nothing closes it.
SHOWING: dict[str, Any] = {
    "result_chord_join_timeout": 1,
    "result_expires": 7200,
    "task_allow_error_cb_on_chord_header": True,
    "task_ignore_result": True,
}


def test_app_with_every_fix_on_is_fine(sqlite):
    for backend in (sqlite, REDIS):
        assert [] == examine(make_app(backend, **SHOWING))


@before_5_7
@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("sqlite", {**POLLED, "chord_fix_tolerant_unlock": False}),
        (PLAIN, {"chord_fix_tolerant_unlock": False}),
    ],
)
def test_short_join(sqlite, backend, settings):
    app = make_app(sqlite if backend == "sqlite" else backend, **settings)
    app.conf.result_chord_join_timeout = 1

    *_, finding = examine(app)

    assert ("result_chord_join_timeout", "C7") == (finding.subject, finding.defect)
    assert str(finding).startswith("result_chord_join_timeout (C7): a good chord fails when")


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("sqlite", {}),
        ("sqlite", POLLED),
        ("sqlite", {"chord_fix_tolerant_unlock": False}),
        (REDIS, {"chord_fix_tolerant_parts": False, "chord_ledger": False}),
        ("cache+memory://", {}),
        ("rpc://", {}),
        (PLAIN, {}),
    ],
)
def test_short_join_that_fails_nothing(sqlite, backend, settings):
    app = make_app(sqlite if backend == "sqlite" else backend, **settings)
    app.conf.result_chord_join_timeout = 1

    assert "result_chord_join_timeout" not in subjects(app)


@pytest.mark.parametrize(("patched", "settings"), [(True, NOT_KEPT), (False, {})])
def test_ignored_results_are_named_as_a_defect(sqlite, patched, settings):
    app = make_app(sqlite, patched, task_ignore_result=True, **settings)

    assert "B9" in [finding.defect for finding in examine(app)]


def test_bound_on_polls_of_celery_alone_is_a_defect_where_the_chord_stays_pending(sqlite):
    annotations = {UNLOCK: {"max_retries": 3}}
    app = make_app(sqlite, patched=False, task_annotations=annotations)

    (finding,) = (f for f in examine(app) if "max_retries" in f.subject)

    stays_pending = celery_version() < celery_5_7
    assert ("C2" if stays_pending else None) == finding.defect
    assert stays_pending == ("stays PENDING for ever" in finding.danger)


@pytest.mark.parametrize(
    ("backend", "bound", "is_polled"),
    [
        (PLAIN, 3, True),
        # Its safety net looks late.
        ("cache+memory://", 3, False),
        ("cache+memory://", 0, True),
        ("rpc://", 0, False),
    ],
)
def test_bound_on_polls_concerns_polled_backends(backend, bound, is_polled):
    app = make_app(backend, task_annotations={UNLOCK: {"max_retries": bound}})

    assert is_polled == any("max_retries" in subject for subject in subjects(app))


def closed_by(app: Celery) -> set[str]:
    """Return the patches that close what the doctor lists."""
    app.finalize()
    lines = defects(app)
    assert all(": closed by " in line for line in lines), lines
    return {line.partition(": closed by ")[2].partition(" - ")[0] for line in lines}


def test_only_defects_of_the_backend_are_listed(sqlite):
    on_redis, on_sqlite = closed_by(make_app()), closed_by(make_app(sqlite))
    polled, counting = closed_by(make_app(PLAIN)), closed_by(make_app("cache+memory://"))

    assert {"tolerant_parts", "counted_parts"} <= on_redis - on_sqlite
    assert {"tolerant_unlock", "counted_chords", "bounded_unlock"} <= on_sqlite - on_redis
    on_all = on_redis & on_sqlite & polled & counting
    assert {"header_order", "chord_failures", "tolerated_parents", "ignored_members"} <= on_all
    assert {"tolerant_unlock", "bounded_unlock"} <= polled & on_sqlite - counting
    assert {"incremented_parts", "counter_safety_net"} <= counting - polled


def test_defect_of_one_database_is_listed_for_that_one(sqlite):
    assert "wide_results" not in closed_by(make_app(sqlite))
    pytest.importorskip("pymysql")

    # From 5.6 on Celery would connect to make its tables.
    mysql = make_app("db+mysql+pymysql://localhost:1/x", database_create_tables_at_setup=False)

    assert "wide_results" in closed_by(mysql)


@pytest.mark.parametrize(
    ("backend", "defect"), [(REDIS, "B7: open, counted_parts"), ("sqlite", "C4: open, counted_")]
)
def test_defect_that_the_ledger_closes_is_open_without_it(sqlite, backend, defect):
    app = make_app(sqlite if backend == "sqlite" else backend, chord_ledger=False)
    app.finalize()

    (line,) = (line for line in defects(app) if line.startswith(defect))

    assert "it needs the ledger, which this app does not keep" in line


def test_defect_whose_fix_is_switched_off_is_open():
    app = make_app(chord_fix_header_order=False)
    app.finalize()

    (line,) = (line for line in defects(app) if line.startswith("B10"))

    assert "open, header_order: skipped (switched off by chord_fix_header_order)" in line


@pytest.mark.skipif(celery_version() < celery_5_3, reason="it came with 5.3")
@pytest.mark.parametrize("is_on", [False, True])
def test_fix_that_has_to_be_asked_for_is_named_where_it_is_on(is_on):
    app = make_app(chord_fix_header_errbacks=True) if is_on else make_app()
    app.finalize()

    assert is_on == any("header_errbacks" in line for line in defects(app))


# Warnings of Celery


@pytest.mark.skipif(celery_version() < celery_5_7, reason="it warns from 5.7 on")
@pytest.mark.parametrize("looks", [examine, lambda app: prepare_app(app, "examined")])
def test_warning_about_the_tasks_of_the_app_does_not_name_the_doctor(looks):
    app = make_app()
    for _ in range(2):

        @app.task(name="same", shared=False)
        def do():
            pass

    with pytest.warns(Warning, match="Task name 'same' is already registered") as caught:
        looks(app)

    here = str(Path(chordguard.__file__).parent)
    assert not [each.filename for each in caught if each.filename.startswith(here)]


# Passwords


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at redis://:hunter2@host:1/0.", "at redis://**@host:1/0."),
        ("'db+mysql://me:hunt@er2@host/x'", "'db+mysql://**@host/x'"),
        ("redis://host/0?password=hunter2&db=1", "redis://host/0?password=**&db=1"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_passwords_are_masked(text, masked):
    assert masked == errors.without_passwords(text)
