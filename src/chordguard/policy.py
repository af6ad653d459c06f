"""What one chord wants: the configuration, overridden per chord.

The choice made per chord travels in the headers of the chord's body, which every
supported Celery carries from the producer to the worker that ends the chord.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.utils.imports import symbol_by_name

from . import settings
from .errors import OUTSIDE, SettingError
from .failures import to_exception

if TYPE_CHECKING:
    from celery import Celery
    from celery.canvas import Signature

__all__ = ("HEADER", "Policy", "strict", "tolerant")

logger = logging.getLogger("chordguard")

#: Name of the message header, on the body, that holds the choice made per chord.
HEADER = "chordguard"

S = TypeVar("S", bound="Signature")


class _Configured:
    """Stands for an argument that was not given: the configuration decides."""

    def __repr__(self) -> str:
        return "<as configured>"


_UNSET: Any = _Configured()

#: Keys of the header and the settings that they override.
_OVERRIDES = {
    "tolerate": "chord_propagate_errors",
    "max_errors": "chord_max_errors",
    "error_format": "chord_error_format",
    "timeout": "chord_timeout",
}


@dataclass(frozen=True)
class Policy:
    """How one chord deals with failed header tasks.

    Attributes:
        tolerate: A failed header task becomes a result and the body runs.
        error_format: See ``chord_error_format``.
        max_errors: So many (int), or such a share (float), is tolerated; None: all.
        timeout: Seconds without progress after which the chord is settled; None: never.
    """

    tolerate: bool
    error_format: str
    max_errors: int | float | None
    timeout: float | None

    @classmethod
    def of(cls, app: Celery, body: Mapping[str, Any] | None) -> Policy:
        """Return the policy of the chord with this `body` (a signature, or one as data)."""
        chosen = _chosen(app, body)
        return cls(
            tolerate=tolerates(app, body),
            error_format=chosen.get("error_format") or settings.get(app, "chord_error_format"),
            max_errors=(
                chosen["max_errors"]
                if "max_errors" in chosen
                else settings.get(app, "chord_max_errors")
            ),
            timeout=_timeout(app, chosen),
        )

    def allows(self, failed: int, size: int) -> bool:
        """Tell whether the body may run although `failed` of `size` members failed."""
        if not failed:
            return True
        if not self.tolerate:
            return False
        if self.max_errors is None:
            return True
        if isinstance(self.max_errors, float):
            return failed / size <= self.max_errors  # exact where 0.29 * 100 is not
        return failed <= self.max_errors

    def hand_over(self, record: dict[str, Any], stored: Any) -> Any:
        """Return what the body gets in place of the result of a failed member.

        Arguments:
            record: The failure as :func:`chordguard.failures.record_of` tells it.
            stored: The failure as the backend holds it: an exception, or its data.
        """
        if self.error_format == "string":
            return record["text"]
        if self.error_format == "dict":
            return record
        if self.error_format == "exception":
            return stored if isinstance(stored, BaseException) else to_exception(record)
        try:
            function = symbol_by_name(self.error_format)  # type: ignore[no-untyped-call]
            return function(dict(record))
        except OUTSIDE:
            raise
        except Exception:
            # A mistake in the user's function costs the format, not the chord.
            logger.exception(
                "chord_error_format = %r failed; the body gets the text instead", self.error_format
            )
            return record["text"]


def timeout_of(app: Celery, body: Mapping[str, Any] | None) -> float | None:
    """Return the `timeout` of the chord with this `body`, as :meth:`Policy.of` does, but faster."""
    return _timeout(app, _chosen(app, body))


def _timeout(app: Celery, chosen: Mapping[str, Any]) -> float | None:
    timeout = chosen.get("timeout", _UNSET)
    if timeout is _UNSET:
        timeout = settings.get(app, "chord_timeout")
    return _in_seconds(timeout) or None  # result_expires = 0 means never, too


def tolerates(app: Celery, body: Mapping[str, Any] | None) -> bool:
    """Tell whether the chord with this `body` tolerates failed header tasks."""
    choice = _chosen(app, body).get("tolerate")
    if choice is None:
        return not settings.get(app, "chord_propagate_errors")
    return bool(choice)


def tolerant(
    chord_or_body: S,
    *,
    max_errors: int | float | None = _UNSET,
    error_format: str = _UNSET,
    timeout: float | timedelta | None = _UNSET,
) -> S:
    """Return a copy of a chord, or of a chord's body, that tolerates failed header tasks.

    It is stronger than the configuration, for this chord alone.

    Arguments:
        chord_or_body: A chord with a body, or the signature that becomes the body.
        max_errors: As ``chord_max_errors``: a count, a share, or None for all.
        error_format: ``"string"``, ``"dict"`` or ``"exception"``. A function's dotted path
            is taken only from the configuration, since a message may not name code.
        timeout: As ``chord_timeout``: seconds, or a timedelta; None: never.

    Raises:
        SettingError: When a value makes no sense.
        TypeError: When it is neither a chord with a body nor a signature.
    """
    return _choose(
        chord_or_body,
        {
            "tolerate": True,
            "max_errors": max_errors,
            "error_format": error_format,
            "timeout": timeout,
        },
    )


def strict(chord_or_body: S, *, timeout: float | timedelta | None = _UNSET) -> S:
    """Return a copy of a chord, or of a chord's body, that fails when a header task fails.

    It is stronger than ``chord_propagate_errors = False``, for this chord alone.

    Arguments:
        chord_or_body: A chord with a body, or the signature that becomes the body.
        timeout: As ``chord_timeout``: seconds, or a timedelta; None: never.

    Raises:
        SettingError: When a value makes no sense.
        TypeError: When it is neither a chord with a body nor a signature.
    """
    return _choose(chord_or_body, {"tolerate": False, "timeout": timeout})


def choice_of(signature: Any) -> Mapping[str, Any] | None:
    """Return the choice that travels in the headers of `signature`, or of what in it starts first.

    ``chord | task`` makes a chain of the body, and of the task, or a chord if the body is a group:
    what starts first is still what was marked.
    """
    if not isinstance(signature, Mapping):
        return None
    choice = choice_in(signature.get("options"))
    if choice is not None:
        return choice
    kwargs = signature.get("kwargs")
    if not isinstance(kwargs, Mapping):
        return None
    tasks = kwargs.get("header" if signature.get("subtask_type") == "chord" else "tasks")
    if isinstance(tasks, Mapping):
        return choice_of(tasks)
    # What was marked stands in a list: a generator is left alone.
    return choice_of(tasks[0]) if isinstance(tasks, (list, tuple)) and tasks else None


def choice_in(options: Any) -> Mapping[str, Any] | None:
    """Return the choice that is among the headers in `options`, if there is one."""
    headers = options.get("headers") if isinstance(options, Mapping) else None
    choice = headers.get(HEADER) if isinstance(headers, Mapping) else None
    return choice if isinstance(choice, Mapping) else None


def _in_seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _choose(chord_or_body: S, choice: dict[str, Any]) -> S:
    from celery.canvas import Signature

    choice = {key: _in_seconds(value) for key, value in choice.items() if value is not _UNSET}
    for key, value in choice.items():
        if key != "tolerate":
            _check_override(key, value)
    if not isinstance(chord_or_body, Signature):
        raise TypeError(
            f"expected a chord or the signature of a chord's body, got {chord_or_body!r}"
        )
    chosen: S = chord_or_body.clone()
    body: Any = chosen
    if chosen.get("subtask_type") == "chord":
        body = chosen.kwargs.get("body")
        if body is None:
            raise TypeError(
                f"expected a chord with a body, got {chord_or_body!r}: mark the body instead"
            )
    _mark(body, choice)
    return chosen


def _mark(signature: Any, choice: Mapping[str, Any]) -> None:
    """Put the choice on a body, and on what in it starts first."""
    from celery.canvas import maybe_signature

    # A new dict: a clone shares the headers with the original.
    signature.set(headers={**(signature.options.get("headers") or {}), HEADER: choice})
    if signature.get("subtask_type") in ("chain", "group"):
        # A new list, too, and a new first task.
        tasks = list(signature.tasks)
        if tasks:
            tasks[0] = maybe_signature(tasks[0], app=signature._app).clone()
            _mark(tasks[0], choice)
        signature.tasks = tasks


def _check_override(key: str, value: Any) -> None:
    settings.check_value(_OVERRIDES[key], value)
    if key == "error_format" and value not in settings.ERROR_FORMATS:
        raise SettingError(
            f"error_format = {value!r} makes no sense for a single chord: expected one of "
            f"{', '.join(map(repr, settings.ERROR_FORMATS))}. A function is named by the setting "
            "chord_error_format, since a message may not name code."
        )


def _chosen(app: Celery, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the valid part of the choice made per chord: it is data from the network."""
    choice = choice_of(body)
    if choice is None:
        return {}
    try:
        for key, value in choice.items():
            if key == "tolerate":
                settings.check_value("chord_propagate_errors", value)
            elif key in _OVERRIDES:
                _check_override(key, value)
        error_format = choice.get("error_format")
        if error_format is not None:
            settings.check_error_format(app, error_format)
    except SettingError as exc:
        logger.error("A chord's own choice is ignored, the configuration decides: %s", exc)
        return {}
    return choice
