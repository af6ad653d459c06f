"""Every setting, with its default, its unit and what it means.

Settings live in the Celery configuration (lower case, or upper case behind the
``CELERY_`` namespace in Django). They are read when they are used, never copied.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from celery.utils.collections import ConfigurationView
from kombu.utils.imports import symbol_by_name

from .errors import SettingError

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "FIX_PREFIX",
    "LONGEST",
    "SETTINGS",
    "Setting",
    "check",
    "check_value",
    "get",
    "interval",
    "is_positive_seconds",
    "seconds",
)

logger = logging.getLogger("chordguard")

#: Each fix has a switch of this name; its default stands with the patch.
FIX_PREFIX = "chord_fix_"

#: The longest time that a setting or an option may name, in seconds: a hundred years of 365 days.
#: `time.sleep`, `timedelta` and dates raise an OverflowError not far beyond it.
LONGEST = 100 * 365 * 86400

#: Error formats that need no function of the user's.
ERROR_FORMATS = ("string", "dict", "exception")

#: Settings whose values are never shown: they hold passwords.
SECRET = frozenset({"chord_ledger_url"})

_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*([.][A-Za-z_]\w*)*[.:][A-Za-z_]\w*")

_URL = re.compile(r"[A-Za-z][\w.:+-]*://")

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """One setting: its name, default, what values are valid, and its meaning."""

    name: str
    default: Any
    valid: str
    check: Check
    meaning: str
    #: Celery's own setting that gives the default, where there is one.
    default_from: str | None = None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # `nan` is not, nor is 10**400


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def _is_max_errors(value: Any) -> bool:
    share = isinstance(value, float) and 0.0 <= value <= 1.0
    return value is None or _is_count(value) or share


def _is_error_format(value: Any) -> bool:
    return isinstance(value, str) and (
        value in ERROR_FORMATS or bool(_DOTTED_PATH.fullmatch(value))
    )


def _is_seconds(value: Any) -> bool:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return _is_number(value) and 0 <= value <= LONGEST


def is_positive_seconds(value: Any) -> bool:
    """Tell whether `value` is a number of seconds, or a timedelta, between 0 and a century."""
    return _is_seconds(value) and bool(value)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and bool(_URL.match(value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


#: All settings by name; the README's table is tested against this list.
SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "chord_propagate_errors",
            True,
            "True or False",
            _is_bool,
            "False: a failed header task becomes a result and the body runs.",
        ),
        Setting(
            "chord_error_format",
            "string",
            "'string', 'dict', 'exception' (with the pickle task serializer) or the dotted "
            "path of a function that takes the record",
            _is_error_format,
            "What a failed header task hands to the body.",
        ),
        Setting(
            "chord_max_errors",
            None,
            "None, a count (int, 0 or more) or a share (float, 0.0 to 1.0)",
            _is_max_errors,
            "Tolerate so many failed header tasks; one more fails the chord.",
        ),
        Setting(
            "chord_timeout",
            None,
            "None (never), seconds (more than 0, up to 100 years) or a timedelta",
            _or_none(is_positive_seconds),
            "Seconds without progress after which a chord is settled.",
            default_from="result_expires",
        ),
        Setting(
            "chord_unlock_max_retries",
            None,
            "None (no bound) or a count (int, 0 or more)",
            _or_none(_is_count),
            "Upper bound on the polls of one chord; reached, the chord is settled.",
        ),
        Setting(
            "chord_unlock_retry_delay",
            None,
            "None (Celery's own), seconds (0 up to 100 years) or a timedelta",
            _or_none(_is_seconds),
            "Seconds before the next poll.",
            default_from="result_chord_retry_interval",
        ),
        Setting(
            "chord_unlock_first_delay",
            30,
            "seconds (0 up to 100 years) or a timedelta",
            _is_seconds,
            "Seconds before the first poll of a chord that is counted.",
        ),
        Setting(
            "chord_ledger",
            True,
            "True or False",
            _is_bool,
            "Keep a ledger of live chords; False: count and poll as Celery alone.",
        ),
        Setting(
            "chord_ledger_url",
            None,
            "None, the URL of a SQL database as SQLAlchemy takes it, or one of Redis",
            _or_none(_is_url),
            "Keep the ledger there, beside any result backend; None: in the result backend itself.",
        ),
        Setting(
            "chord_watchdog_interval",
            30,
            "seconds (0 up to 100 years; 0: never) or a timedelta",
            _is_seconds,
            "Seconds between two looks of each worker at the chords that are due; 0: none.",
        ),
        Setting(
            "chord_store_signatures",
            False,
            "True or False",
            _is_bool,
            "Keep the members' signatures in the ledger: `repair` can send lost ones again.",
        ),
        Setting(
            "chord_unlock_retry_backoff",
            1.0,
            "a factor (1.0 or more)",
            lambda value: _is_number(value) and value >= 1,
            "Factor by which the delay grows with each poll; 1.0: not at all.",
        ),
        Setting(
            "chord_unlock_retry_backoff_max",
            60,
            "seconds (more than 0, up to 100 years)",
            is_positive_seconds,
            "Ceiling in seconds of a delay that grows.",
        ),
        Setting(
            "chord_unlock_retry_jitter",
            False,
            "True or False",
            _is_bool,
            "Spread each delay evenly between half of it and all of it.",
        ),
    )
}

_complained: set[tuple[str, str]] = set()


def check_value(name: str, value: Any) -> None:
    """Raise :exc:`SettingError` when `value` makes no sense for the setting `name`."""
    if name.startswith(FIX_PREFIX):
        valid, is_valid = "True or False", _is_bool(value)
    else:
        valid, is_valid = SETTINGS[name].valid, SETTINGS[name].check(value)
    if not is_valid:
        shown = f"a {type(value).__name__}" if name in SECRET else repr(value)
        raise SettingError(f"{name} = {shown} makes no sense: expected {valid}.")


def get(app: Celery, name: str, *, is_on: bool = True) -> Any:
    """Return the value of the setting `name` for `app`, or its default.

    `is_on` is the default of the switch of a fix.

    A value that became invalid after the installation is reported once in the log and
    the default is used: a chord is never broken by a typing error.
    """
    default: Any = is_on
    if not name.startswith(FIX_PREFIX):
        setting = SETTINGS[name]
        default = setting.default
        if setting.default_from:
            default = app.conf.get(setting.default_from)
    if not _may_be_set(app.conf, name):
        return default
    value = app.conf.get(name, default)
    if value is default:
        return value
    try:
        check_value(name, value)
    except SettingError as exc:
        if (name, repr(value)) not in _complained:
            _complained.add((name, repr(value)))
            logger.error("%s The default %r is used.", exc, default)
        return default
    return value


def _may_be_set(conf: Any, name: str) -> bool:
    """Tell whether it takes a look with ``conf.get``, which is slow for what is not there.

    Switches are read with each task, and hardly ever set.
    """
    if not isinstance(conf, ConfigurationView):
        return True
    names = _names(conf.prefix, name)
    for layer in conf.maps:
        for key in names:
            if key in layer:
                return True
    return False


@cache
def _names(prefix: str | None, name: str) -> tuple[str, ...]:
    """Return the keys under which a setting that Celery does not know may be found."""
    if not prefix:
        return (name,)
    return name, prefix + name, (prefix + name).upper()


def seconds(app: Celery, name: str) -> float:
    """Return the value of the setting `name`, a number or a timedelta, in seconds."""
    value = get(app, name)
    return float(value.total_seconds() if isinstance(value, timedelta) else value)


def interval(app: Celery) -> float:
    """Return the seconds between two looks at a chord; the default where none are to be made."""
    own = seconds(app, "chord_watchdog_interval")
    return own or float(SETTINGS["chord_watchdog_interval"].default)


def check(app: Celery, fixes: tuple[str, ...] = ()) -> None:
    """Raise :exc:`SettingError` for the first setting of `app` that makes no sense.

    `fixes` are the names of the fixes, each of which has a switch.
    """
    conf = app.conf
    missing = object()
    for name in (*SETTINGS, *(FIX_PREFIX + fix for fix in fixes)):
        value = conf.get(name, missing)
        if value is not missing:
            check_value(name, value)
    known = {*SETTINGS, *(FIX_PREFIX + fix for fix in fixes)}
    namespace = f"{app.namespace}_".lower() if app.namespace else ""
    for name in (key for key in conf if isinstance(key, str)):
        fix = name.lower().removeprefix(namespace)
        if fix.startswith(FIX_PREFIX) and fix not in known:
            raise SettingError(
                f"{name} = {conf.get(name)!r} makes no sense: there is no such fix; expected one "
                f"of {', '.join(sorted(fixes))} after {FIX_PREFIX}."
            )
    check_error_format(app, get(app, "chord_error_format"))


def check_error_format(app: Celery, error_format: str) -> None:
    """Raise :exc:`SettingError` when `app` cannot hand errors to a body in `error_format`."""
    name = "chord_error_format"
    accepted = {"pickle", "application/x-python-serialize"} & set(app.conf.accept_content or ())
    if error_format == "exception" and app.conf.task_serializer == "pickle" and not accepted:
        raise SettingError(
            f"{name} = 'exception' makes no sense: only {app.conf.accept_content!r} is "
            "accepted; expected 'pickle' among accept_content, or another format."
        )
    if error_format == "exception" and app.conf.task_serializer != "pickle":
        raise SettingError(
            f"{name} = 'exception' makes no sense: the task serializer is "
            f"{app.conf.task_serializer!r}, which cannot carry exception objects; expected "
            "task_serializer = 'pickle', or another format ('string', 'dict')."
        )
    if error_format not in ERROR_FORMATS:
        try:
            function = symbol_by_name(error_format)  # type: ignore[no-untyped-call]
        except (ImportError, AttributeError) as exc:
            raise SettingError(
                f"{name} = {error_format!r} cannot be imported ({exc}): expected "
                f"{SETTINGS[name].valid}."
            ) from exc
        if not callable(function):
            raise SettingError(
                f"{name} = {error_format!r} names a {type(function).__name__}: expected "
                f"{SETTINGS[name].valid}."
            )
