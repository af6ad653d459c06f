"""Exceptions and warnings of chordguard."""

from __future__ import annotations

import re
from typing import Any

from celery.exceptions import ChordError, ImproperlyConfigured, SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

__all__ = (
    "OUTSIDE",
    "CannotTell",
    "ChordEnded",
    "ChordMemberError",
    "ChordMemberLost",
    "ChordMembersFailed",
    "ChordguardError",
    "ChordguardWarning",
    "LedgerMissing",
    "ResultTooLong",
    "ResultUnreadable",
    "SettingError",
    "UntestedCeleryWarning",
    "is_from_outside",
    "without_passwords",
)

#: Raised wherever the code happens to be, whatever it does; those that are no `Exception` beside.
OUTSIDE = (SoftTimeLimitExceeded, MemoryError)

_PASSWORD_IN_URL = re.compile(r"(?<=://)[^\s'\"]*@")
PASSWORD_IN_TEXT = re.compile(r"(?i)(passw\w*|pwd|secret|token)=([^\s&'\"]+)")


class ChordguardError(Exception):
    """Base of the exceptions that chordguard raises."""


class SettingError(ChordguardError, ImproperlyConfigured):  # type: ignore[misc]
    """A setting has a value that makes no sense; the message names the valid ones."""


class LedgerMissing(ChordguardError, ImproperlyConfigured):  # type: ignore[misc]
    """The app keeps no ledger of its chords; the message says what it takes."""


class CannotTell(ChordguardError):
    """Chords cannot be looked at: the message says what could not be read, and why."""


class ResultTooLong(ChordguardError, EncodeError):
    """A result is longer than its column in the database; the message says how to widen that.

    To Celery it is a result that cannot be encoded: the task fails with this error.
    """


class ResultUnreadable(ChordguardError):
    """The stored result of this header task cannot be decoded; the message says why."""


class ChordMemberLost(ChordguardError):
    """No result of this header task arrived before the chord reached its bound."""


class ChordMemberError(ChordguardError):
    """A header task failed with an exception whose class is not known in this process.

    The failure's data are in ``record``.
    """

    def __init__(self, text: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.record = record


class ChordMembersFailed(ChordguardError, ChordError):  # type: ignore[misc]
    """Raised by :func:`chordguard.raise_if_errors`; all failures are in ``errors``."""

    def __init__(self, message: str, errors: list[Any] | None = None) -> None:
        super().__init__(message)
        self.errors = errors or []


class ChordEnded(ChordguardError, RuntimeError):
    """A chord cannot take another member: it has ended, or is not counted."""


class ChordguardWarning(UserWarning):
    """chordguard could not do its part, or sees something dangerous in the settings."""


class UntestedCeleryWarning(ChordguardWarning):
    """The installed Celery version is none of those that chordguard was tested with."""


def is_from_outside(exc: BaseException) -> bool:
    """Tell whether an exception says nothing of the code that it interrupted.

    It does not when a process or greenlet is told to end, or when a soft time limit strikes.
    """
    return isinstance(exc, OUTSIDE) or not isinstance(exc, Exception)


def without_passwords(text: str) -> str:
    """Return `text` with the credentials in its URLs masked."""
    return PASSWORD_IN_TEXT.sub(r"\1=**", _PASSWORD_IN_URL.sub("**@", text))
