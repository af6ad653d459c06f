"""Run random canvases and compare each with a plain evaluation of what it must give.

    python -m tests.canvases [--backend redis|sqlite|postgresql|mysql|rpc+redis|django-...]
                             [--count N] [--seed N] [--canvas JSON] [--strict | --tolerant]
                             [--healthy] [--stock]

Without a backend: all of them. ``--strict``, ``--tolerant``: what the configuration says of a
chord that has no choice of its own; without either, half of the canvases run under each.
``--healthy``: no task fails. ``--canvas``: this one, strict unless said otherwise. ``--stock``:
Celery alone, whose misses are no failure. A canvas that goes wrong is printed as JSON and as
code, and made simpler as long as it goes wrong. The exit status is 1 if one did.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.canvases import batch
from tests.canvases.strategies import drawn
from tests.canvases.watching import Watch
from tests.harness import BACKENDS, DJANGO_BACKENDS, WITH_OWN_LEDGER, Clusters
from tests.servers import Servers

if TYPE_CHECKING:
    from tests.canvases.model import Node

#: How many of the canvases that went wrong are made simpler.
SHRUNK = 3


def run(clusters: Clusters, backend: str, nodes: list[Node], tolerate: bool, stock: bool) -> bool:
    settings: dict[str, Any] = {
        "chord_propagate_errors": not tolerate,
        # Each chord has to end by its last part: the safety net on SQL comes too late to help.
        "chord_unlock_first_delay": 300,
    }
    started = time.monotonic()
    with clusters.alone(backend, patched=not stock, settings=settings) as cluster:
        watch = None if stock else Watch(cluster)
        misses = batch.run(cluster, nodes, tolerate=tolerate, watch=watch)
        seconds = time.monotonic() - started
        print(
            f"{backend:10} {'tolerant' if tolerate else 'strict':8} "
            f"{'stock' if stock else 'patched':7} {len(nodes) - len(misses)} of {len(nodes)} "
            f"right in {seconds:.0f} s",
            flush=True,
        )
        for index, miss in enumerate(misses):
            print(miss, flush=True)
            if index < SHRUNK and not stock:
                print("simplest:", batch.shrunk(cluster, miss, tolerate=tolerate), flush=True)
        if watch is not None:
            print(f"  {len(watch.seen)} chords, {watch.looks} looks at how far live ones are")
            for wrong in watch.wrong:
                print(f"  {wrong}", flush=True)
    return stock or not (misses or (watch is not None and watch.wrong))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.canvases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=[*BACKENDS, *WITH_OWN_LEDGER, *DJANGO_BACKENDS])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--canvas", type=json.loads, action="append")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--strict", action="store_true")
    half.add_argument("--tolerant", action="store_true")
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--stock", action="store_true")
    options = parser.parse_args()
    nodes = options.canvas or drawn(options.count, options.seed, healthy=options.healthy)
    if not options.canvas:
        print(f"seed {options.seed}")
    halves = {False: nodes[::2], True: nodes[1::2]}
    if options.strict or options.tolerant or options.canvas:
        halves = {options.tolerant: nodes}
    servers = Servers()
    is_fine = True
    try:
        clusters = Clusters(servers)
        for backend in [options.backend] if options.backend else BACKENDS:
            for tolerate, some in halves.items():
                is_fine = run(clusters, backend, some, tolerate, options.stock) and is_fine
    finally:
        servers.close()
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
