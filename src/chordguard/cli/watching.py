"""The command `watch`: the live chords, again and again."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from ..errors import CannotTell, LedgerMissing
from ..recovery.survey import NUMBERS, Chord, Survey, survey
from ..settings import LONGEST
from .calling import CANNOT_TELL, CODES, SCHEMA, STATUSES, Answer, command
from .ranges import Range
from .screen import Screen, duration, new_table, plural

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("watch",)

#: Characters of a bar in plain text.
BAR = 20


@command("watch")
@click.option("--interval", type=Range(0.1, LONGEST), default=2.0, show_default=True, metavar="S")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Look N times, then end.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N")
def watch(app: Celery, interval: float, count: int | None, limit: int) -> Answer:
    """Show live chords and their progress.

    The oldest first, until Ctrl-C; from the ledger and the stored results, as `status`. With
    --json there is one line for each look.
    """
    is_json = click.get_current_context().meta["chordguard.json"]
    screen = Screen()
    code, looks = 0, 0
    with _live(screen, is_json) as live:
        while True:
            found, problem = _look(app)
            code = CANNOT_TELL if problem else CODES[found.status]
            if is_json:
                _print_json(found, problem, code)
            elif live is not None:
                live.update(_table(screen, found, limit, problem), refresh=True)
            else:
                _print_plain(screen, found, limit, problem)
            looks += 1
            if count is not None and looks >= count:
                return Answer(code, is_shown=True)
            time.sleep(interval)


def _look(app: Celery) -> tuple[Survey, str]:
    """Return the live chords, or why they cannot be told."""
    try:
        return survey(app, is_asking=False), ""
    except (CannotTell, LedgerMissing) as exc:
        return Survey(), f"Cannot tell: {exc}"


def _live(screen: Screen, is_json: bool) -> Any:
    if screen.console is None or is_json:
        return nullcontext()
    from rich.live import Live

    return Live(console=screen.console, auto_refresh=False, vertical_overflow="crop")


def _head(found: Survey, problem: str) -> str:
    if problem:
        return problem
    return f"{plural(len(found.chords), 'live chord')}, {len(found.problems)} in trouble"


def _table(screen: Screen, found: Survey, limit: int, problem: str) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    table = new_table()
    is_wide = screen.is_wide
    for title in _titles(is_wide):
        table.add_column(title, no_wrap=True)
    table.add_column("", min_width=8, ratio=1)
    for chord in found.chords[:limit]:
        bar = ProgressBar(total=chord.size or 1, completed=chord.done)
        style = "red" if chord.is_problem else ""
        id_, kind, *numbers = _row(chord, is_wide)
        if not is_wide:
            id_ += f"\n  {chord.failed} failed, {chord.rate}, {chord.eta} left"
        table.add_row(Text(id_), Text(kind, style), *numbers, bar)
    return Group(Text(_head(found, problem), "bold"), table)


def _print_plain(screen: Screen, found: Survey, limit: int, problem: str) -> None:
    screen.line(f"{time.strftime('%H:%M:%S')}  {_head(found, problem)}")
    if found.chords:
        rows = [(*_row(chord, True), _bar(chord)) for chord in found.chords[:limit]]
        screen.table((*_titles(True), ""), rows)


def _titles(is_wide: bool) -> tuple[str, ...]:
    return ("chord", "diagnosis", "age", *(NUMBERS if is_wide else NUMBERS[:1]))


def _row(chord: Chord, is_wide: bool) -> tuple[str, ...]:
    numbers = chord.numbers(is_wide=is_wide)
    return (chord.id, chord.found.kind, duration(chord.age), *numbers)


def _bar(chord: Chord) -> str:
    full = BAR * chord.done // chord.size if chord.size else 0
    return f"[{'#' * full}{'.' * (BAR - full)}]"


def _print_json(found: Survey, problem: str, code: int) -> None:
    data: dict[str, Any] = {"schema": SCHEMA, "command": "watch", "status": STATUSES[code]}
    if problem:
        data["problem"] = problem
    else:
        data["chords"] = [chord.facts() for chord in found.chords]
    click.echo(json.dumps(data))
