"""How answers look: by rich in a terminal, as plain text elsewhere or without rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..errors import without_passwords
from ..recovery.wording import duration, plural

__all__ = ("Screen", "duration", "plural")


#: Columns of a terminal from which on a table of chords shows how fast they are.
WIDE = 120


class Screen:
    """Stdout."""

    def __init__(self) -> None:
        self.console = _console()

    @property
    def is_wide(self) -> bool:
        """Tell whether there is room for all columns: where it is no terminal there is."""
        return self.console is None or self.console.width >= WIDE

    def line(self, text: str = "", style: str = "") -> None:
        """Print one or more lines; the style, which is rich's, is for terminals."""
        for line in without_passwords(text).split("\n"):
            self._line(line, style)

    def _line(self, text: str, style: str) -> None:
        if self.console is None:
            click.echo(text)
            return
        from rich.padding import Padding
        from rich.text import Text

        # What is indented stays so where the terminal breaks it.
        stripped = text.lstrip(" ")
        indent = (0, 0, 0, len(text) - len(stripped))
        self.console.print(Padding(Text(stripped, style), indent, expand=False))

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table. Its last column gives way where the terminal is narrow."""
        cells = [[without_passwords(cell) for cell in row] for row in rows]
        if self.console is None:
            for line in plain_table(titles, cells):
                click.echo(line)
            return
        from rich.text import Text

        table = new_table()
        for index, title in enumerate(titles):
            is_last = index == len(titles) - 1
            table.add_column(title, no_wrap=not is_last, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        self.console.print(table)


def new_table() -> Any:
    """Return an empty table of rich in the style of all."""
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), header_style="bold")


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _console() -> Any:
    """Return rich's console; None where text is to be plain."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False, soft_wrap=False)
