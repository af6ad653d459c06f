"""The numbers that commands take."""

from __future__ import annotations

from typing import Any

import click

from ..settings import LONGEST

__all__ = ("HOURS", "Range")


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


#: An age in hours.
HOURS = Range(0, LONGEST / 3600)
