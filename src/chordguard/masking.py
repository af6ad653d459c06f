"""User names and passwords of an app's URLs stay out of what is shown, logged and answered.

A driver may quote any part of a URL that it misreads: of `redis://:se/cret@host` the port "se". So
the text of each exception is searched for the user info of all apps of this process, and for its
parts. Our own words are built without it and are not searched: a user may be called `celery`.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, unquote_plus

from .errors import PASSWORD_IN_TEXT, CannotTell, LedgerMissing, without_passwords
from .failures import cut

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("address_of", "cause_to_show", "masked", "told", "why_unparsable", "words_of")

#: What stands for user info.
MASK = "**"

#: The settings that hold URLs.
URLS = (
    "result_backend",
    "broker_url",
    "broker_read_url",
    "broker_write_url",
    "database_url",
    "chord_ledger_url",
)

#: The settings that may hold a user name or a password otherwise.
OTHERS = (
    "broker_user",
    "broker_password",
    "broker_transport_options",
    "broker_use_ssl",
    "redis_username",
    "redis_password",
    "redis_backend_use_ssl",
    "result_backend_transport_options",
    "database_engine_options",
)

#: The modules that take URLs apart.
PARSERS = ("urllib.parse", "kombu.utils.url", "sqlalchemy.engine.url")

#: From this length on a password is masked within a longer word, too.
LONG = 4

_SECRET_KEY = re.compile(r"(?i)passw|pwd|secret|token|credential")
_USER_KEY = re.compile(r"(?i)user|login")
#: Where a driver may cut a user name or a password into parts.
_CUTS = re.compile(r"[\s/@:;#?%&=\"'\\\[\]]+")
#: Between the URLs of a setting that names several, such as Sentinels.
_BETWEEN_URLS = re.compile(r";(?=[\w+.-]+://)")


def masked(text: str) -> str:
    """Return the text of an exception without the user info of the apps of this process."""
    pattern = _pattern(frozenset(secret for app in _apps() for secret in _secrets_of(app)))
    text = without_passwords(text)
    return pattern.sub(MASK, text) if pattern else text


def words_of(exc: BaseException, setting: str = "result_backend or broker_url") -> str:
    """Return ``ExcType: message`` without user info.

    Arguments:
        exc: The exception.
        setting: The setting whose URL is at fault if `exc` is about one that cannot be parsed.
            What the parser says is not repeated then.
    """
    return why_unparsable(exc, setting) or masked(f"{type(exc).__name__}: {exc}")


def told(exc: BaseException) -> str:
    """Return the sentence about an error, without user names and passwords."""
    is_ours = isinstance(exc, (CannotTell, LedgerMissing))
    return str(exc) if is_ours else words_of(exc)


def why_unparsable(exc: BaseException, setting: str) -> str | None:
    """Return a sentence about the URL of a `setting` if parsing it raised `exc`; else None."""
    frames = (frame for frame, _ in traceback.walk_tb(exc.__traceback__))
    if any(frame.f_globals.get("__name__") in PARSERS for frame in frames):
        return f"the {setting} URL cannot be parsed: percent-encode the user name and password"
    return None


def cause_to_show(exc: BaseException) -> BaseException | None:
    """Return the exception to raise another one from; None where it would show user info."""
    with suppress(Exception):
        if all(line.rstrip() == shown.rstrip() for line, shown in _lines_of(exc)):
            return exc
    return None


def address_of(url: Any) -> str:
    """Return a URL, or several, without user info and query."""
    urls = url if isinstance(url, (list, tuple)) else _BETWEEN_URLS.split(str(url))
    return ";".join(map(_address_of, urls))


def _address_of(url: str) -> str:
    scheme, separator, rest = str(url).partition("://")
    if "sqlite" not in scheme:
        # What follows the last @, since a password may have more of them.
        rest = rest.rpartition("@")[2]
    return f"{scheme if separator else ''}{separator}{rest}".partition("?")[0]


class MaskingFilter(logging.Filter):
    """Masks user info in the exceptions of log records, and cuts what is far too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record where needed; let it pass."""
        with suppress(Exception):
            if isinstance(record.args, tuple):
                record.args = tuple(
                    cut(masked(str(arg))) if isinstance(arg, BaseException) else arg
                    for arg in record.args
                )
            exc = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
            if exc is not None and cause_to_show(exc) is None:
                # Handlers that do not look at the text would show the exception itself.
                record.exc_text = "".join(shown for _, shown in _lines_of(exc)).rstrip("\n")
                record.exc_info = None
        return True


_filter = MaskingFilter()
for _name in ("chordguard", "chordguard.check"):
    # A filter of a logger does not see what its children log.
    logging.getLogger(_name).addFilter(_filter)


def _lines_of(exc: BaseException) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a traceback, each as it is and as it is shown."""
    for piece in traceback.format_exception(type(exc), exc, exc.__traceback__):
        is_frame = piece.lstrip(" |").startswith("File ")
        yield piece, without_passwords(piece) if is_frame else f"{cut(masked(piece).rstrip())}\n"


def _apps() -> list[Celery]:
    from celery._state import _get_active_apps

    return list(_get_active_apps())


def _setting(app: Any, name: str) -> Any:
    """Return the value of a setting of Celery's; an app is not configured for it."""
    try:
        return getattr(app.conf, name, None) if app.configured else app._preconf.get(name)
    except Exception:  # noqa: BLE001 - anybody's configuration
        return None


def _secrets_of(app: Celery) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a password, user name or password) for all that `app` has."""
    for name in URLS + OTHERS:
        yield from _secrets_in(name, _setting(app, name))
    yield from _secrets_in("result_backend", getattr(app, "backend_cls", None))


def _secrets_in(name: str, value: Any) -> Iterator[tuple[bool, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets_in(str(key), inner)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _secrets_in(name, inner)
    elif isinstance(value, (str, int)):
        value, is_password = str(value), bool(_SECRET_KEY.search(name))
        if is_password or _USER_KEY.search(name):
            yield is_password, value
        for url in _BETWEEN_URLS.split(value):
            yield from _secrets_in_url(url)
        for found in PASSWORD_IN_TEXT.finditer(value):
            yield True, found[2]


def _secrets_in_url(url: str) -> Iterator[tuple[bool, str]]:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, _, rest = url.partition(":")
    info = rest.rpartition("@")[0]
    if info and "sqlite" not in scheme:
        user, _, password = info.partition(":")
        yield False, user
        yield True, password


def _forms(secret: str) -> Iterator[str]:
    """Yield how a user name or a password, or a part of it, may be written."""
    for whole in {secret, unquote(secret), unquote_plus(secret)}:
        for form in (whole, *_CUTS.split(whole)):
            yield from (form, quote(form, safe=""), ascii(form)[1:-1])
            yield repr(form.encode(errors="replace"))[2:-1]


@lru_cache(maxsize=16)
def _pattern(secrets: frozenset[tuple[bool, str]]) -> re.Pattern[str] | None:
    """Return what matches the secrets, given as (whether it is a password, itself)."""
    users, passwords = set[str](), set[str]()
    for is_password, secret in secrets:
        (passwords if is_password else users).update(filter(None, _forms(secret)))
    anywhere = {form for form in passwords if len(form) >= LONG}
    words = _any_of((users | passwords) - anywhere)
    patterns = [_any_of(anywhere), rf"(?<![^\W_])(?:{words})(?![^\W_])" if words else ""]
    found = "|".join(filter(None, patterns))
    return re.compile(found, re.IGNORECASE) if found else None


def _any_of(forms: set[str]) -> str:
    """Return a pattern for the `forms`, the longest first."""
    return "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
