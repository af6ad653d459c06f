"""The numbers that commands take."""

from __future__ import annotations

import re
from typing import Any

import click

from ..settings import LONGEST

__all__ = ("DURATION", "Duration", "Range")


class Range(click.FloatRange):
    """A number from `least` to `most`, which neither `nan` nor `inf` is."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__(least, most)
        self.least, self.most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return `value` as a float, or fail with a message that names it as it was typed."""
        number: float = click.FLOAT.convert(value, param, ctx)
        if not self.least <= number <= self.most:
            expected = f"expected {self.least:g} to {self.most:.15g}"
            self.fail(f"{str(value)!r} is not in the range: {expected}", param, ctx)
        return number


#: The units of a duration, and their seconds.
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_DURATION = re.compile(r"(\d{1,18}(?:\.\d+)?)([smhd]?)")


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Seconds, as a number or with a unit: 90, 90s, 15m, 6h, 2d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return `value` in seconds, or fail with a message that names it as it was typed."""
        found = _DURATION.fullmatch(str(value).strip())
        seconds = float(found[1]) * UNITS[found[2]] if found else -1.0
        if not 0 <= seconds <= LONGEST:
            expected = "expected 0 up to 100 years, such as 90, 15m, 6h or 2d"
            self.fail(f"{str(value)!r} is no duration: {expected}", param, ctx)
        return seconds


#: An age, or an interval.
DURATION = Duration()
