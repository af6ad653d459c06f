"""Log lines that are written once, not once for every chord."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from typing import Any

__all__ = (
    "is_reported",
    "mark_reported",
    "warn_once",
    "warn_once_of",
)

logger = logging.getLogger("chordguard")


_warned: set[tuple[str, type | None]] = set()


def warn_once(message: str, *args: Any) -> None:
    """Log the exception that is being handled, each kind once in a process."""
    kind, exc, _ = sys.exc_info()
    if is_reported(exc):
        return
    if (message, kind) not in _warned:
        _warned.add((message, kind))
        logger.warning("%s (said once)", message % args, exc_info=True)


#: The chords that were told of, with what was said; the oldest is forgotten first.
_told_of: OrderedDict[tuple[str, str], None] = OrderedDict()

#: How many of them are remembered.
TOLD_OF = 10_000


def warn_once_of(group_id: str, message: str, *args: Any) -> None:
    """Log a warning of a chord, whose id comes first; the same message once in a process."""
    key = (group_id, message)
    if key not in _told_of:
        _told_of[key] = None
        if len(_told_of) > TOLD_OF:
            _told_of.popitem(last=False)
        logger.warning(message, group_id, *args)


#: The attribute of an exception that was warned of: `tell` sets it, `is_told` reads it.
_TOLD = "chordguard_told"


def mark_reported(exc: BaseException) -> None:
    """Note that `exc` was warned of."""
    setattr(exc, _TOLD, True)


def is_reported(exc: BaseException | None) -> bool:
    """Return whether `exc` was warned of, so that it need not be logged again."""
    return getattr(exc, _TOLD, False)
