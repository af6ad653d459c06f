from __future__ import annotations

import contextlib
import logging
from datetime import timedelta

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from chordguard import SettingError, install_patches, settings, uninstall_patches

VALID = {
    "chord_propagate_errors": [True, False],
    "chord_error_format": ["string", "dict", "json.dumps", "json:dumps"],
    "chord_max_errors": [None, 0, 3, 0.0, 0.5, 1.0],
    "chord_timeout": [None, 1, 0.5, timedelta(hours=1)],
    "chord_unlock_max_retries": [None, 0, 1000],
    "chord_unlock_retry_delay": [None, 0, 0.5, 10, timedelta(seconds=3)],
    "chord_unlock_first_delay": [0, 0.5, 30, timedelta(seconds=3)],
    "chord_ledger": [True, False],
    "chord_ledger_url": [None, "redis://localhost/1", "sqlite:////tmp/ledger.sqlite"],
    "chord_store_signatures": [True, False],
    "chord_watchdog_interval": [0, 0.5, 30, timedelta(seconds=3)],
    "chord_unlock_retry_backoff": [1, 1.0, 2.5],
    "chord_unlock_retry_backoff_max": [0.5, 60, timedelta(minutes=1)],
    "chord_unlock_retry_jitter": [True, False],
    "chord_fix_header_order": [True, False],
}
#: Infinite, or so long that what sleeps or reckons with dates raises an OverflowError.
TOO_LONG = [float("inf"), 1e300, 10**400, timedelta.max]
INVALID = {
    "chord_propagate_errors": [None, 0, 1, "False", "no"],
    "chord_error_format": [None, True, 1, "", "text", "json.", ".dumps", "not a path", print],
    "chord_max_errors": [True, -1, 1.5, -0.1, float("nan"), float("inf"), 10**400, "3"],
    "chord_timeout": [0, -1, True, "1 hour", timedelta(0), float("nan"), *TOO_LONG],
    "chord_unlock_max_retries": [-1, 1.0, True, "3", float("nan"), float("inf"), 10**400],
    "chord_unlock_retry_delay": [
        *(-0.1, "1", True, timedelta(seconds=-1), float("nan")),
        *TOO_LONG,
    ],
    "chord_unlock_first_delay": [None, -1, "30", True, timedelta(seconds=-1), *TOO_LONG],
    "chord_store_signatures": [None, 0, "yes"],
    "chord_watchdog_interval": [None, -1, "30", True, float("nan"), *TOO_LONG],
    "chord_ledger": [None, 0, 1, "False"],
    "chord_ledger_url": [True, 1, "", "localhost", "://localhost"],
    "chord_unlock_retry_backoff": [
        0,
        0.9,
        -1,
        "2",
        True,
        None,
        float("nan"),
        float("inf"),
        10**400,
    ],
    "chord_unlock_retry_backoff_max": [0, -1, "60", None, True, float("nan"), *TOO_LONG],
    "chord_unlock_retry_jitter": [None, 0, 1, 0.5],
    "chord_fix_header_order": [None, 0, 1, "False"],
}


def pairs(values):
    return [
        pytest.param(name, value, id=f"{name}={value!r:.40}")
        for name, of_name in values.items()
        for value in of_name
    ]


@pytest.fixture
def app():
    app = Celery("settings", broker="memory://", backend="db+sqlite://")
    yield app
    uninstall_patches(app)


def test_every_setting_is_tested():
    assert set(settings.SETTINGS) == set(VALID) - {"chord_fix_header_order"}
    assert set(VALID) == set(INVALID)


@pytest.mark.parametrize("setting", settings.SETTINGS.values(), ids=lambda setting: setting.name)
def test_unset_setting_has_its_default(app, setting):
    expected = app.conf.get(setting.default_from) if setting.default_from else setting.default

    assert expected == settings.get(app, setting.name)
    assert setting.meaning.endswith(".")


@pytest.mark.parametrize("setting", settings.SETTINGS.values(), ids=lambda setting: setting.name)
def test_default_is_valid(app, setting):
    value = settings.get(app, setting.name)

    app.conf[setting.name] = value
    settings.check(app)


def test_fixes_are_on_unless_switched_off(app):
    assert settings.get(app, "chord_fix_header_order") is True


@pytest.mark.parametrize(("name", "value"), pairs(VALID))
def test_valid_value_is_taken(app, name, value):
    app.conf[name] = value

    install_patches(app)

    assert value == settings.get(app, name)


@pytest.mark.parametrize(("name", "value"), pairs(INVALID))
def test_value_that_makes_no_sense_is_refused(app, name, value):
    app.conf.update({name: value})
    app.finalize()

    with pytest.raises(SettingError) as caught:
        install_patches(app)

    valid = settings.SETTINGS[name].valid if name in settings.SETTINGS else "True or False"
    assert name in str(caught.value)
    assert name in settings.SECRET or repr(value) in str(caught.value)
    assert valid in str(caught.value)


def test_nothing_is_installed_when_a_setting_is_refused(app):
    app.conf.update(chord_max_errors=-1)
    app.finalize()

    with pytest.raises(SettingError):
        install_patches(app)

    assert not getattr(app, "_chordguard", False)


@pytest.mark.parametrize(("name", "value"), pairs(INVALID))
def test_app_configured_later_is_refused_when_it_is_finalized(app, name, value):
    install_patches(app)
    app.conf.update({name: value})

    with pytest.raises(SettingError, match=name):
        app.finalize()


class Django:
    CELERY_CHORD_PROPAGATE_ERRORS = False
    CELERY_CHORD_MAX_ERRORS = 0.25
    CELERY_CHORD_TIMEOUT = 60
    CELERY_CHORD_FIX_HEADER_ORDER = False


class DjangoMistake:
    CELERY_CHORD_MAX_ERRORS = -1


class DjangoTypingError:
    CELERY_CHORD_FIX_HEADER_ODER = False


@pytest.mark.parametrize("install_first", [True, False])
def test_settings_come_from_a_namespace(app, install_first):
    if install_first:
        install_patches(app)
    app.config_from_object(Django, namespace="CELERY")
    install_patches(app)
    app.finalize()

    assert settings.get(app, "chord_propagate_errors") is False
    assert 0.25 == settings.get(app, "chord_max_errors")
    assert 60 == settings.get(app, "chord_timeout")
    assert settings.get(app, "chord_fix_header_order") is False


@pytest.mark.parametrize("source", [DjangoMistake, DjangoTypingError])
def test_mistakes_in_a_namespace_are_refused(app, source):
    install_patches(app)
    app.config_from_object(source, namespace="CELERY")

    with pytest.raises(SettingError, match=r"(?i)chord_(max_errors|fix_header_oder)"):
        app.finalize()


def test_switch_of_no_fix_is_refused_and_the_fixes_are_named(app):
    app.conf.update(chord_fix_header_oder=False)
    app.finalize()

    with pytest.raises(SettingError, match=r"chord_fix_header_oder = False.*header_order"):
        install_patches(app)


def test_timeout_follows_the_expiry_of_results(app):
    app.conf.result_expires = 123

    assert 123 == settings.get(app, "chord_timeout")


def test_value_that_became_invalid_costs_the_value_not_the_chord(app, caplog):
    install_patches(app)
    app.conf.chord_max_errors = "many"

    with caplog.at_level(logging.ERROR, "chordguard"):
        assert settings.get(app, "chord_max_errors") is None
        assert settings.get(app, "chord_max_errors") is None

    (message,) = caplog.messages
    assert "chord_max_errors = 'many'" in message
    assert "None is used" in message


def test_exceptions_need_the_pickle_serializer(app):
    app.conf.chord_error_format = "exception"

    with pytest.raises(SettingError, match="task_serializer = 'pickle'"):
        settings.check(app)

    app.conf.task_serializer = "pickle"
    with pytest.raises(SettingError, match="'pickle' among accept_content"):
        settings.check(app)

    app.conf.accept_content = ["json", "pickle"]
    settings.check(app)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module.function", "cannot be imported"),
        ("json.no_such_function", "cannot be imported"),
        ("string.digits", "names a str"),
    ],
)
def test_error_format_has_to_name_a_function(app, path, says):
    app.conf.chord_error_format = path

    with pytest.raises(SettingError, match=says):
        settings.check(app)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.timedeltas(),
    st.lists(st.integers(), max_size=2),
)


@given(name=st.sampled_from([*settings.SETTINGS, "chord_fix_header_order"]), value=anything)
def test_check_accepts_or_raises_setting_error_only(name, value):
    with contextlib.suppress(SettingError):
        settings.check_value(name, value)


@given(st.floats() | st.integers())
def test_max_errors_is_a_count_or_a_share(value):
    is_valid = 0 <= value < 2**63 if isinstance(value, int) else 0 <= value <= 1
    try:
        settings.check_value("chord_max_errors", value)
    except SettingError:
        assert not is_valid
    else:
        assert is_valid
