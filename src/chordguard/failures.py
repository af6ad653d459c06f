"""What a failed header task hands to the body, and what the body's author can do with it."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from .errors import ChordMemberError, ChordMembersFailed

__all__ = (
    "cut",
    "describe",
    "is_chord_error",
    "line_of",
    "listed",
    "raise_if_errors",
    "record_of",
    "split_results",
    "to_exception",
)

#: The key, and the version of the format, by which a record is recognised.
MARKER = "__chord_error__"

#: How many characters of an error's text are handed on.
LONGEST = 4096

#: How many failed members a message names, and how many characters it has for each of them.
NAMED = 100
LINE = 240


class StoredFailure(Protocol):
    """A failed task as its result is stored."""

    @property
    def task_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def value(self) -> Any: ...


def record_of(failure: StoredFailure, index: int | None) -> dict[str, Any]:
    """Return the JSON-safe record of a failed header task.

    Type and message are those that were stored; the exception is not rebuilt, so a
    class that this process cannot import, or cannot call, changes nothing. Of a message that is
    longer than :data:`LONGEST` only the start is taken, since the body gets all records at once.

    Arguments:
        failure: The stored result of the task.
        index: The position in the header, counted over all members from 0.
    """
    exc_type, exc_module, args = _parts_of(failure.value)
    message = cut(_message_of(exc_type, exc_module, args, failure.value))
    return {
        MARKER: 1,
        "task_id": failure.task_id,
        "index": index,
        "state": failure.state,
        "exc_type": exc_type,
        "exc_module": exc_module,
        "exc_message": message,
        "text": f"{exc_type.rpartition('.')[2]}: {message}",
    }


def describe(record: dict[str, Any]) -> str:
    """Return one line about a failure, for messages and logs."""
    return f"{record['task_id']} {cut(record['text'])}"


def listed(lines: Iterable[str], count: int) -> str:
    """Return a line that names failures, as far as it stays readable.

    Arguments:
        lines: A line about each failure, or about the first :data:`NAMED` of them.
        count: How many failures there are.
    """
    named = [line if len(line) <= LINE else f"{line[:LINE]}..." for line in islice(lines, NAMED)]
    if count > len(named):
        named.append(f"and {count - len(named)} more")
    return "; ".join(named)


def cut(text: str) -> str:
    """Return the start of a `text` that is longer than :data:`LONGEST`, and say so."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({len(text):,} characters, cut)"


def is_chord_error(value: Any) -> bool:
    """Tell whether `value` stands for a failed header task.

    It knows the record (``chord_error_format="dict"``) and exception objects
    (``"exception"``). The text of the default format is a string like any other and is
    not recognised: choose ``"dict"`` for a body that has to tell errors from values.
    """
    if isinstance(value, BaseException):
        return True
    return isinstance(value, dict) and MARKER in value


def split_results(results: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Split what a body received into (values, errors), both in header order.

    Nested lists of results keep their place among the values, without their errors.
    See :func:`is_chord_error` for what is recognised as an error.
    """
    values: list[Any] = []
    errors: list[Any] = []
    for result in results:
        if is_chord_error(result):
            errors.append(result)
        elif isinstance(result, list) and any(_has_errors(item) for item in result):
            inner_values, inner_errors = split_results(result)
            values.append(inner_values)
            errors.extend(inner_errors)
        else:
            values.append(result)
    return values, errors


def raise_if_errors(results: Iterable[Any]) -> None:
    """Raise :exc:`ChordMembersFailed`, naming every failed header task, if there is one.

    Its cause is the first failure as an exception, its ``errors`` are all of them.
    """
    errors = split_results(results)[1]
    if errors:
        lines = (describe(error) if isinstance(error, dict) else line_of(error) for error in errors)
        noun = "task" if len(errors) == 1 else "tasks"
        raise ChordMembersFailed(
            f"{len(errors)} header {noun} failed: {listed(lines, len(errors))}", errors
        ) from to_exception(errors[0])


def to_exception(record: Any) -> BaseException:
    """Return the exception that `record` tells of.

    An instance of the original class where that class is already imported here and takes
    the stored message, else a :exc:`ChordMemberError`. Nothing is ever imported for it:
    a record is data from the network.
    """
    if isinstance(record, BaseException):
        return record
    if not is_chord_error(record):
        raise TypeError(
            f"to_exception() takes a chord error (a record or an exception), got {record!r}"
        )
    found: Any = sys.modules.get(record.get("exc_module") or "builtins")
    for name in str(record["exc_type"]).split("."):
        found = getattr(found, "__dict__", {}).get(name)  # getattr may import something
    if isinstance(found, type) and issubclass(found, BaseException):
        # A constructor of its own kind may refuse the message, or make another one of it.
        with suppress(Exception):
            exc = found(record["exc_message"])
            if str(exc) == record["exc_message"]:
                return exc
    return ChordMemberError(record["text"], record)


def _has_errors(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_errors(item) for item in value)
    return is_chord_error(value)


def line_of(exc: BaseException) -> str:
    """Return ``ExcType: message`` for an exception, whatever its text does."""
    return f"{type(exc).__name__}: {cut(safe_str(exc))}"


def safe_str(value: Any) -> str:
    """Return ``str(value)``, or a stand-in when that raises."""
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - anybody's __str__
        return f"<no text: str() raised {type(exc).__name__}>"


#: What Celery stores in place of an exception that cannot be pickled: module, class name,
#: arguments and text of the original (celery.utils.serialization).
_WRAPPER = "UnpickleableExceptionWrapper"


def _parts_of(value: Any) -> tuple[str, str | None, tuple[Any, ...] | None]:
    """Return type name, module and arguments of a failure as the backend stored it.

    The arguments are None where only the exception itself can word its message.
    """
    if isinstance(value, dict) and "exc_type" in value:
        message = value.get("exc_message")
        args = tuple(message) if isinstance(message, (list, tuple)) else (message,)
        if value["exc_type"] == _WRAPPER and len(args) >= 3:
            return _unwrapped(*args[:3])
        return str(value["exc_type"]), value.get("exc_module"), args
    if type(value).__name__ == _WRAPPER:
        return _unwrapped(value.exc_module, value.exc_cls_name, value.exc_args)
    if isinstance(value, BaseException):
        return type(value).__qualname__, type(value).__module__, None
    return type(value).__name__, None, (value,)


def _unwrapped(module: Any, name: Any, args: Any) -> tuple[str, str | None, tuple[Any, ...]]:
    return str(name), module, tuple(args) if isinstance(args, (list, tuple)) else (args,)


def _message_of(
    exc_type: str, exc_module: str | None, args: tuple[Any, ...] | None, value: Any
) -> str:
    if args is None:
        return safe_str(value)
    if exc_module == "builtins":
        # Only the class knows how it words its arguments: KeyError, OSError, UnicodeError.
        builtin = getattr(builtins, exc_type, None)
        if isinstance(builtin, type) and issubclass(builtin, BaseException):
            with suppress(Exception):
                return str(builtin(*args))
    if not args:
        return ""
    return safe_str(args[0] if len(args) == 1 else args)
