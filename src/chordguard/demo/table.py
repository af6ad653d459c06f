"""The table of the demo: each defect with Celery alone and with the patches."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from .lane import BACKENDS
from .producer import Cell
from .scenarios import SCENARIOS, Scenario, here

__all__ = ("Cells", "make_table", "sentence")

#: A cell by the scenario's name, the backend, and whether it is that of a patched lane.
Cells = Mapping[tuple[str, str, bool], Cell]


def make_table(cells: Cells, celery: str) -> Table:
    """Return the table; `celery` is Celery's version."""
    table = Table(
        title=f"Chords on Celery {celery}, Python {platform.python_version()}",
        title_justify="left",
    )
    table.add_column("what is run", ratio=4)
    table.add_column("backend", no_wrap=True)
    table.add_column("Celery alone", ratio=3)
    table.add_column("with chordguard", ratio=3)
    for scenario in SCENARIOS:
        _add_rows(table, scenario, cells)
    return table


def sentence(cells: Cells, celery: str) -> str:
    """Return in one sentence what was shown."""
    stock = [cell.right for (_, _, patched), cell in cells.items() if not patched]
    fixed = [cell.right for (_, _, patched), cell in cells.items() if patched]
    done = f"all {len(fixed)} did" if all(fixed) else f"only {sum(fixed)} did"
    return (
        f"Of {len(stock)} chords that meet its defects, {sum(stock) or 'none'} ended right with "
        f"Celery {celery} alone; with chordguard {done}."
    )


def _add_rows(table: Table, scenario: Scenario, cells: Cells) -> None:
    backends = [backend for backend in BACKENDS if scenario in here(backend)]
    for backend in backends:
        title = Text(f"{scenario.defect} {scenario.title}")
        table.add_row(
            title if backend == backends[0] else Text(),
            backend,
            _text(cells.get((scenario.name, backend, False))),
            _text(cells.get((scenario.name, backend, True))),
            end_section=backend == backends[-1],
        )


def _text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("not known", style="red")
    return Text(f"{'✓' if cell.right else '✗'} {cell.text}", style="green" if cell.right else "red")
