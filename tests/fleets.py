"""Fleets in which not all have the patches, or the same Celery: how chords end in them.

`python -m tests.fleets --other PYTHON` runs them with a second environment, whose Celery is another
version; without it the fleets are of this environment's Celery alone. Each chord has to end where
all workers have the patches, or its producer and one of them; one that ends right without any
patches, in the same fleet, has to end right. On SQL Celery 5.7 and
those before it cannot share a result backend, with or without the patches: their rows differ.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celery
from celery import chain, chord, group

from tests import tasks
from tests.app_factory import make_app
from tests.harness import ROOT, Stack, is_ready, running_worker, state_and_value
from tests.servers import Servers

#: Seconds without any chord that ends after which the others are said to hang.
QUIET = 15.0
SETTINGS = {"chord_watchdog_interval": 0.5, "chord_unlock_first_delay": 1, "chord_timeout": 8}
FAILS = "fails"

#: What is sent, and how it ends.
CANVASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "flat": (lambda t: chord([t.echo.s(i) for i in range(10)], t.collect.s()), list(range(10))),
    "generator": (lambda t: chord((t.echo.s(i) for i in range(5)), t.collect.s()), [0, 1, 2, 3, 4]),
    "chains": (
        lambda t: chord([chain(t.echo.s(1), t.add.s(1)), t.echo.s(3)], t.collect.s()),
        [2, 3],
    ),
    "group in the header": (
        lambda t: chord([group(t.echo.s(1), t.echo.s(2)), t.echo.s(3)], t.collect.s()),
        [1, 2, 3],
    ),
    "chord in the header": (
        lambda t: chord(
            [chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()), t.echo.s(4)], t.collect.s()
        ),
        [3, 4],
    ),
    "body is a chain": (
        lambda t: chord([t.echo.s(1), t.echo.s(2)], chain(t.tsum.s(), t.add.s(1))),
        4,
    ),
    "body is a group": (
        lambda t: chord([t.echo.s(1), t.echo.s(2)], group(t.collect.s(), t.tsum.s())),
        [[1, 2], 3],
    ),
    "member fails": (lambda t: chord([t.fail.s(), t.echo.s(1)], t.collect.s()), FAILS),
    "chord in the header fails": (
        lambda t: chord([chord([t.fail.s(), t.echo.s(1)], t.collect.s()), t.echo.s(2)], t.tsum.s()),
        FAILS,
    ),
    "body fails": (lambda t: chord([t.echo.s(1), t.echo.s(2)], t.fail.si()), FAILS),
}


@dataclass(frozen=True)
class Side:
    """A producer, or a worker: an environment, and whether it has the patches."""

    python: str
    version: str
    patched: bool

    def __str__(self) -> str:
        return f"{self.version} {'patched' if self.patched else 'stock'}"


@dataclass(frozen=True)
class Fleet:
    producer: Side
    workers: tuple[Side, ...]

    def __str__(self) -> str:
        return f"{self.producer} -> {', '.join(map(str, self.workers))}"

    def stock(self) -> Fleet:
        """Return the fleet without any patches."""
        return Fleet(_stock(self.producer), tuple(map(_stock, self.workers)))


def _stock(side: Side) -> Side:
    return Side(side.python, side.version, False)


def run(servers: Servers, backend: str, fleet: Fleet) -> dict[str, str]:
    """Return how each of `CANVASES` ends: "right", "wrong", FAILS or "hangs"."""
    if fleet.producer.python != sys.executable:
        raise ValueError(f"{fleet.producer} cannot produce here: this is {sys.executable}")
    with contextlib.closing(Stack(servers, backend, "redis")) as stack:
        config = stack.config(SETTINGS)
        app = make_app(config, patched=fleet.producer.patched)
        with contextlib.ExitStack() as workers:
            for side in fleet.workers:
                workers.enter_context(
                    running_worker(config, patched=side.patched, concurrency=1, python=side.python)
                )
            t = tasks.named(app)
            results = {name: canvas(t).apply_async() for name, (canvas, _) in CANVASES.items()}
            wait_for(results)
            return {name: judge(result, CANVASES[name][1]) for name, result in results.items()}


def wait_for(results: Mapping[str, Any]) -> None:
    pending, changed = dict(results), time.monotonic()
    while pending and time.monotonic() - changed < QUIET:
        for name in [name for name, result in pending.items() if is_ready(result)]:
            del pending[name]
            changed = time.monotonic()
        time.sleep(0.1)


def judge(result: Any, expected: Any) -> str:
    if not is_ready(result):
        return "hangs"
    state, value = state_and_value(result)
    if expected == FAILS or state != "SUCCESS":
        is_right = expected == FAILS and state == "FAILURE"
        return "right" if is_right else FAILS
    return "right" if value == expected else "wrong"


def mistakes(fleet: Fleet, ended: Mapping[str, str], stock: Mapping[str, str]) -> list[str]:
    """Return what a fleet does worse than it would without patches, or leaves undone with them."""
    patched = [side.patched for side in fleet.workers]
    # A worker without them may fail a chord that nobody has opened in the ledger as Celery does.
    is_looked_after = all(patched) or (fleet.producer.patched and any(patched))
    return [
        f"{name}: {how}, without any patches {stock[name]}"
        for name, how in ended.items()
        if how != "right" and (stock[name] == "right" or (how == "hangs" and is_looked_after))
    ]


def fleets(other: Side | None = None) -> Iterator[Fleet]:
    """Yield the fleets whose producer is this environment."""
    stock, patched = (Side(sys.executable, celery.__version__, which) for which in (False, True))
    if other is None:
        yield Fleet(patched, (stock,))
        yield Fleet(stock, (patched,))
        yield Fleet(patched, (patched, stock))
        yield Fleet(stock, (patched, stock))
    else:
        yield Fleet(patched, (other,))
        yield Fleet(stock, (other,))
        yield Fleet(patched, (patched, other))
        yield Fleet(patched, (stock, other))


def other_side(python: str) -> Side:
    version = subprocess.check_output(
        [python, "-c", "import celery; print(celery.__version__)"], text=True, cwd=ROOT
    )
    return Side(python, version.strip(), patched=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", help="the Python of an environment with another Celery")
    parser.add_argument("--backend", choices=("redis", "postgresql", "sqlite", "mysql"))
    options = parser.parse_args()
    servers = Servers()
    other = other_side(str(Path(options.other).absolute())) if options.other else None
    has_failed = False
    is_shared = other is None or (other.version >= "5.7") == (celery.__version__ >= "5.7")
    backends = ["redis", *(["postgresql"] if is_shared else [])]
    for backend in [options.backend] if options.backend else backends:
        references: dict[Fleet, dict[str, str]] = {}
        for fleet in fleets(other):
            stock = fleet.stock()
            if stock not in references:
                references[stock] = run(servers, backend, stock)
            ended = run(servers, backend, fleet)
            found = mistakes(fleet, ended, references[stock])
            right = list(ended.values()).count("right")
            without = list(references[stock].values()).count("right")
            print(f"{backend:10} {fleet}: {right} of {len(ended)} right (stock alone: {without})")
            for name, how in ended.items():
                if how != "right":
                    print(f"    {name}: {how}, without any patches {references[stock][name]}")
            for mistake in found:
                print(f"    MISTAKE: {mistake}")
            sys.stdout.flush()
            has_failed = has_failed or bool(found)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
