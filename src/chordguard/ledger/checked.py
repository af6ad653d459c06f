"""What a ledger keeps, checked as it is read: a store may hold anything.

What is written elsewhere may rely on it: ids are strings, headers are nested lists of them,
times are times, and a body has the shape of a signature. What is not so is left out, and named.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.canvas import Signature, maybe_signature
from kombu.exceptions import ContentDisallowed
from kombu.utils.encoding import bytes_to_str

from ..errors import OUTSIDE, ChordguardError
from .packing import Header, unpack_data

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("ChordUnreadable", "Reader", "body_of", "header_in", "in_a_line")

#: How deep a header, or a body, may be nested. Celery itself fails to start deeper ones.
MOST_DEEP = 200

#: Seconds by which a time may be ahead of this machine's clock.
MOST_AHEAD = 86400.0

#: The largest number of members that is thought to be one.
MOST_MEMBERS = 2**31

#: What a damage of a body begins with.
BODY_UNREADABLE = "its body cannot be read"

#: How many characters of a reason are told.
TOLD = 200


class ChordUnreadable(ChordguardError):
    """A chord cannot be ended as it is: the message says what of it is damaged."""


class Reader:
    """Reads the record of one chord.

    Arguments:
        now: The time (Unix time).
        damage: What is known to be damaged.

    Attributes:
        damage: What could not be read, in a sentence; None: nothing.
    """

    def __init__(self, now: float, damage: str | None = None) -> None:
        self.damage = damage
        self._now = now

    def spoilt(self, reason: str) -> None:
        """Note a damage; the first one is told."""
        self.damage = self.damage or reason

    def number(self, name: str, value: Any) -> int | None:
        """Return a number of members; None for one that is missing or damaged."""
        if value is None or value is False:
            return None
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not 0 <= number < MOST_MEMBERS:
            self.spoilt(f"its {name} is {_shown(value)}, expected a number of members")
            return None
        return number

    def moment(self, name: str, value: Any) -> float | None:
        """Return a Unix time; None for one that is missing, damaged or makes no sense."""
        if value is None or value is False:
            return None
        try:
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):
            self.spoilt(f"its {name} is {_shown(value)}, expected a Unix time")
            return None
        is_sane = math.isfinite(seconds) and 0 <= seconds <= self._now + MOST_AHEAD
        return seconds if is_sane else None

    def header(self, text: Any) -> Header | None:
        """Return the header that is packed in `text`; None where it is missing or damaged."""
        if not text:
            return None
        try:
            header = json.loads(text)
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - data; a RecursionError for what is nested deep
            self.spoilt(f"its header cannot be read: {in_a_line(exc)}")
            return None
        reason = _damage_of_header(header)
        if reason:
            self.spoilt(f"its header cannot be read: {reason}")
            return None
        checked: Header = header
        return checked

    def body(self, value: Any) -> bytes | None:
        """Return the packed body, which :func:`body_of` reads."""
        if value is None or value is False:
            return None
        return value.encode(errors="surrogateescape") if isinstance(value, str) else bytes(value)


def _damage_of_header(header: Any) -> str | None:
    level = [header]
    for _ in range(MOST_DEEP):
        inner: list[Any] = []
        for items in level:
            if not isinstance(items, list):
                return f"it holds {_shown(items)}, expected ids and lists of them"
            inner += [item for item in items if type(item) is not str]
        if not inner:
            return None
        level = inner
    return f"it is nested deeper than {MOST_DEEP} lists"


def header_in(text: Any) -> Header | None:
    """Return the header that is packed in `text`; None where it is missing or damaged."""
    return Reader(time.time()).header(text)


def body_of(app: Celery, packed: bytes) -> tuple[Any, str | None]:
    """Return the signature of a packed body, and what of it is damaged, in a sentence.

    What is damaged is left out: the rest still tells which results are waited for. The signature
    is None where nothing can be read.

    Raises:
        kombu.exceptions.ContentDisallowed: The app does not accept its serializer.
    """
    try:
        data = unpack_data(app, packed)
        reasons: list[str] = []
        data = _repaired(data, reasons, set(), 0)
    except (ContentDisallowed, *OUTSIDE):
        raise
    except Exception as exc:  # noqa: BLE001 - it is told
        return None, f"{BODY_UNREADABLE}: {in_a_line(exc)}"
    if not reasons:
        try:
            return maybe_signature(data, app=app), None
        except Exception as exc:  # noqa: BLE001 - it is told
            reasons.append(in_a_line(exc))
    damage = f"{BODY_UNREADABLE}: {reasons[0]}"
    with suppress(Exception):
        return maybe_signature(data, app=app), damage
    # At least its own result can be told of.
    with suppress(Exception):
        simple = {"task": data["task"], "args": (), "kwargs": {}, "options": data["options"]}
        return maybe_signature(simple, app=app), damage
    return None, damage


#: Of what kind the entries of a signature, and of its options, are; None is a missing one.
_ENTRIES: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "args": (list, tuple),
    "kwargs": (Mapping,),
    "options": (Mapping,),
    "subtask_type": (str,),
}
_OPTIONS: dict[str, tuple[type, ...]] = {
    "task_id": (str,),
    "group_id": (str,),
    "headers": (Mapping,),
    "chord": (Mapping,),
    "chain": (list, tuple),
    "link": (list, tuple, Mapping),
    "link_error": (list, tuple, Mapping),
}


def _repaired(data: Any, reasons: list[str], seen: set[int], depth: int) -> Any:
    """Return a signature without what is damaged in it; None for one that is none at all.

    It is the same object if nothing is. `seen` are the ids of those that were found to be well.
    """
    if id(data) in seen:
        return data
    if not isinstance(data, Mapping):
        reasons.append(f"it has {_shown(data)} in place of a signature")
        return None
    if depth > MOST_DEEP:
        reasons.append(f"it is nested deeper than {MOST_DEEP} signatures")
        return None
    known = len(reasons)
    entries = _of_kinds(data, _ENTRIES, reasons)
    options = _of_kinds(entries.get("options") or {}, _OPTIONS, reasons)
    kwargs = dict(entries.get("kwargs") or {})
    kind = entries.get("subtask_type")
    if kind is not None and kind not in Signature.TYPES:
        reasons.append(f"subtask_type is {_shown(kind)}")
        kind = entries["subtask_type"] = None
    for name in ("chain", "link", "link_error", "chord"):
        if options.get(name):
            options[name] = _each(options[name], reasons, seen, depth)
    if kind in ("chain", "group"):
        kwargs["tasks"] = _each(_listed(kwargs.get("tasks"), reasons), reasons, seen, depth)
    elif kind == "chord" and kwargs.get("body") is not None:
        kwargs["body"] = _repaired(kwargs["body"], reasons, seen, depth + 1)
    if len(reasons) == known:
        seen.add(id(data))
        return data
    return {**entries, "args": entries.get("args") or (), "kwargs": kwargs, "options": options}


def _of_kinds(
    data: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], reasons: list[str]
) -> dict[str, Any]:
    """Return the entries that are of their kind."""
    entries = dict(data)
    for name, types in kinds.items():
        value = entries.get(name)
        if value is not None and not isinstance(value, types):
            reasons.append(f"{name} is {_shown(value)}")
            del entries[name]
    return entries


def _listed(tasks: Any, reasons: list[str]) -> Any:
    if isinstance(tasks, (list, tuple)):
        return tasks
    reasons.append(f"tasks is {_shown(tasks)}")
    return []


def _each(value: Any, reasons: list[str], seen: set[int], depth: int) -> Any:
    """Return a signature, or a list of them, without what is damaged."""
    if isinstance(value, Mapping):
        return _repaired(value, reasons, seen, depth + 1)
    found = (_repaired(item, reasons, seen, depth + 1) for item in value)
    return [item for item in found if item is not None]


def in_a_line(exc: BaseException) -> str:
    """Return the type and the text of an error in one line that is not too long."""
    try:
        text = " ".join(str(exc).split())
    except Exception:  # noqa: BLE001 - anybody's __str__
        text = ""
    name = type(exc).__name__
    return _cut(f"{name}: {text}" if text else name)


def _shown(value: Any) -> str:
    if isinstance(value, (bytes, str, int, float)):
        return _cut(repr(bytes_to_str(value) if isinstance(value, str) else value))  # type: ignore[no-untyped-call]
    return f"a {type(value).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= TOLD else f"{text[:TOLD]}..."
