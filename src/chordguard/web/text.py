"""Text from a network, made fit to be shown: control characters are seen, length has a bound."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

__all__ = ("clean", "clock", "moment")

#: So many characters of a text are shown, unless it says otherwise.
SHOWN = 500

#: Control characters but for the end of a line, and those that turn the direction of text.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def clean(value: Any, most: int = SHOWN) -> str:
    """Return a text with at most so many characters, in which nothing hides."""
    text = str(value)
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
    return _HIDDEN.sub(lambda found: f"\\x{ord(found[0]):02x}", cut)


def moment(seconds: float) -> str:
    """Return a Unix time as date and time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(seconds: float) -> str:
    """Return a Unix time as the time of day in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%H:%M:%S UTC")
