"""Start the chords of a lane and see how they end: ``python -m chordguard.demo.producer LANE``.

Writes a line of JSON for each scenario, as soon as its end is known: see `Cell`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from celery import chord, states

from .lane import Lane, make_app, tasks_of
from .scenarios import FAILS, MEMBERS, Scenario, here

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Cell", "main", "shortened")

#: Seconds that the worker may take until it has run its first chord.
READY_DEADLINE = 40.0
#: Seconds that a chord may take that somebody waits for with get().
GET_DEADLINE = 30.0
#: Seconds without any change in the whole lane after which what is PENDING hangs. By then
#: the worker has run a chord that was started after all others, so that it has nothing to do.
QUIET = 3.0
#: The same with the patches, where nothing should hang: a slow machine gets more time.
QUIET_PATCHED = 15.0
#: Seconds between two looks.
INTERVAL = 0.1
#: Characters of a failure's text that are shown.
TEXT_SHOWN = 20

_ERROR = re.compile(r"(\w+(?:Error|Lost)): (?:Dependency \S+ raised )?(.+)", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """How one chord ended in one lane: a cell of the table."""

    scenario: str
    text: str
    right: bool

    @classmethod
    def from_json(cls, line: str) -> Cell:
        """Return the cell that `to_json` wrote down."""
        return cls(**json.loads(line))

    def to_json(self) -> str:
        """Write the cell down for the process that shows the table."""
        return json.dumps(asdict(self))


@dataclass
class Running:
    """A chord that was started."""

    scenario: Scenario
    result: Any
    #: What was last seen of it.
    seen: Any = None
    header: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.header = list(_leaves(self.result.parent))

    def look(self) -> tuple[str, int]:
        """Return the state of the body and how many members of the header are ready."""
        ready = sum(member.state in states.READY_STATES for member in self.header)
        return self.result.state, ready


def main(text: str) -> int:
    """Run all scenarios of a lane."""
    lane = Lane.from_json(text)
    app = make_app(lane)
    tasks = tasks_of(app)
    wait_for_worker(tasks)
    scenarios = here(lane.backend)
    running = []
    for scenario in scenarios:
        if scenario.watched == "eager":
            tell(run_eagerly(app, scenario, tasks))
        elif scenario.watched != "reads":
            running.append(Running(scenario, scenario.build(tasks).apply_async()))
    # Started after all others: when it has ended the worker has come to them, too.
    for scenario in scenarios:
        if scenario.watched == "reads":
            tell(count_reads(app, scenario, tasks))
    for cell in watch(lane, running):
        tell(cell)
    return 0


def tell(cell: Cell) -> None:
    """Hand a cell to the process that shows the table."""
    print(cell.to_json(), flush=True)


def wait_for_worker(tasks: Any) -> None:
    """Return when the worker has run a chord."""
    chord([tasks.number.s(0)], tasks.collect.s()).apply_async().get(timeout=READY_DEADLINE)


def watch(lane: Lane, running: list[Running]) -> Iterator[Cell]:
    """Yield how each chord ended, or that it hangs."""
    quiet = QUIET_PATCHED if lane.patched else QUIET
    changed = time.monotonic()
    while running and time.monotonic() - changed < quiet:
        for chord_ in list(running):
            seen = chord_.look()
            if seen != chord_.seen:
                chord_.seen = seen
                changed = time.monotonic()
            if seen[0] in states.READY_STATES:
                running.remove(chord_)
                yield ended(chord_)
        time.sleep(INTERVAL)
    for chord_ in running:
        yield hanging(lane, chord_)


def ended(chord_: Running) -> Cell:
    """Return the cell of a chord that has a result."""
    scenario, result = chord_.scenario, chord_.result
    if scenario.watched == "get":
        try:
            value = result.get(timeout=GET_DEADLINE)
        except Exception as exc:  # noqa: BLE001 - it is what the demo shows
            return Cell(scenario.name, f"raises {shortened(exc)}", right=False)
        return cell_of(scenario, states.SUCCESS, value)
    return cell_of(scenario, result.state, result.result)


def hanging(lane: Lane, chord_: Running) -> Cell:
    """Return the cell of a chord that nothing will ever end, with what speaks for that."""
    state, ready = chord_.seen
    evidence = f"{ready} of {len(chord_.header)} header tasks ended"
    polls = lane.polls.read_text().split() if lane.polls.exists() else []
    count = polls.count(chord_.result.parent.id)
    if count and ready < len(chord_.header):
        evidence += f", polled {count} times"
    return Cell(chord_.scenario.name, f"{state} for ever ({evidence})", right=False)


def cell_of(scenario: Scenario, state: str, value: Any) -> Cell:
    """Return the cell of a chord that ended in `state`."""
    short = shortened(value)
    if state == states.SUCCESS:
        return Cell(scenario.name, str(short), right=short == scenario.expected)
    return Cell(scenario.name, f"fails: {short}", right=scenario.expected == FAILS)


def run_eagerly(app: Celery, scenario: Scenario, tasks: Any) -> Cell:
    """Run a chord in this process."""
    app.conf.task_always_eager = True
    try:
        result = scenario.build(tasks).apply_async()
    except Exception as exc:  # noqa: BLE001 - it is what the demo shows
        return Cell(scenario.name, f"apply_async raises {shortened(exc)}", right=False)
    finally:
        app.conf.task_always_eager = False
    return cell_of(scenario, result.state, result.result)


def count_reads(app: Celery, scenario: Scenario, tasks: Any) -> Cell:
    """Wait for a large chord and count how often the result backend is asked."""
    result = scenario.build(tasks).apply_async()
    started = time.monotonic()
    with counted_reads(app.backend) as reads:
        try:
            value = result.get(timeout=GET_DEADLINE)
        except Exception as exc:  # noqa: BLE001 - it is what the demo shows
            return Cell(scenario.name, f"raises {shortened(exc)}", right=False)
    seconds = time.monotonic() - started
    right = value == scenario.expected and len(reads) <= MEMBERS
    noun = "read" if len(reads) == 1 else "reads"
    return Cell(scenario.name, f"{len(reads):,} {noun} in {seconds:.1f} s", right)


@contextmanager
def counted_reads(backend: Any) -> Iterator[list[str]]:
    """Give a list that gets longer by one with each command or statement that reads."""
    reads: list[str] = []
    if hasattr(backend, "ResultSession"):
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def note_statement(*args: Any) -> None:
            _, _, statement, *_ = args
            if statement.startswith("SELECT"):
                reads.append(statement)

        event.listen(Engine, "before_cursor_execute", note_statement)
        try:
            yield reads
        finally:
            event.remove(Engine, "before_cursor_execute", note_statement)
        return
    client = backend.client
    execute = client.execute_command

    def note_command(*args: Any, **options: Any) -> Any:
        if args[0] in ("GET", "MGET"):
            reads.append(args[0])
        return execute(*args, **options)

    client.execute_command = note_command
    try:
        yield reads
    finally:
        del client.execute_command


def shortened(value: Any) -> Any:
    """Return `value` with the ids in texts of failures, and long texts, left out."""
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    if isinstance(value, (list, tuple)):
        return [shortened(item) for item in value]
    error = _ERROR.fullmatch(value) if isinstance(value, str) else None
    if error is None:
        return value
    return f"{error[1]}: {error[2] if len(error[2]) <= TEXT_SHOWN else '...'}"


def _leaves(result: Any) -> Iterator[Any]:
    members = getattr(result, "results", None)
    if members is None:
        if result is not None:
            yield result
    else:
        for member in members:
            yield from _leaves(member)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
