"""Whether the server lets chords be counted.

Each process asks once, and again some time after the server refused: a right may be missing from
the start, be taken away and be granted again. Meanwhile chords are counted by Celery alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping

__all__ = (
    "REFUSED_SECONDS",
    "may_count",
    "stop_counting",
)

logger = logging.getLogger("chordguard")

#: Seconds for which chords are not counted after the server refused to, before it is asked again.
REFUSED_SECONDS = 60.0

#: Until when (monotonic seconds) chords are not counted, by ledger: 0 where nothing was refused.
_refused_until: dict[Hashable, float] = {}

#: What was warned of: the ledger, and what its server refused.
_warned: set[tuple[Hashable, str]] = set()


def may_count(key: Hashable, ask: Callable[[], Mapping[str, str]], message: str) -> bool:
    """Tell whether the server lets chords be counted, as far as is known.

    Arguments:
        key: Which ledger it is.
        ask: Returns what the server refuses, and its reason for each.
        message: What to log, once, if it refuses something.
    """
    until = _refused_until.get(key)
    if until == 0:
        return True
    if until is not None and time.monotonic() < until:
        return False
    try:
        refused = ask()
    except Exception:  # noqa: BLE001 - whoever counts now finds that out with retries
        return True
    if refused:
        stop_counting(key, refused, message)
    else:
        _refused_until[key] = 0
    return not refused


def stop_counting(key: Hashable, refused: Mapping[str, str], message: str) -> None:
    """Have `may_count` return False for :data:`REFUSED_SECONDS`, and warn once of what is refused.

    Arguments:
        key: Which ledger it is.
        refused: What the server refuses, and its reason for each.
        message: What to log before that.
    """
    _refused_until[key] = time.monotonic() + REFUSED_SECONDS
    what = ", ".join(refused)
    if (key, what) not in _warned:
        _warned.add((key, what))
        logger.warning(
            "%s: the server refuses %s (%s); grant what is missing to the user of the result "
            "backend; it is asked again after %g s",
            message,
            what,
            next(iter(refused.values())),
            REFUSED_SECONDS,
        )
