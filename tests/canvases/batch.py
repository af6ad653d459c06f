"""Many canvases at once on one cluster, each compared with its plain evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.canvases.model import (
    Node,
    build,
    code,
    evaluate,
    has_ended,
    outcome_of,
    smaller,
)

if TYPE_CHECKING:
    from tests.canvases.watching import Watch
    from tests.harness import Cluster

#: Seconds without the end of any canvas after which those that have not ended never will.
QUIET = 30.0
#: Seconds between two looks at the canvases.
INTERVAL = 0.1
#: The same where somebody watches the chords, too.
WATCHED = 0.01
#: Characters that are shown of a value.
SHOWN = 1000


@dataclass(frozen=True)
class Miss:
    """A canvas that did not give what it must."""

    node: Node
    expected: Any
    given: Any

    def __str__(self) -> str:
        return (
            f"{json.dumps(self.node)}\n  {code(self.node)}\n"
            f"  expected {_cut(self.expected)}\n  got      {_cut(self.given)}"
        )


def _cut(outcome: Any) -> str:
    text = repr(outcome)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def run(
    cluster: Cluster,
    nodes: Sequence[Node],
    *,
    tolerate: bool,
    quiet: float = QUIET,
    watch: Watch | None = None,
) -> list[Miss]:
    """Publish the canvases, wait for all of them, return those that went wrong.

    A canvas is given up after `quiet` seconds in which none has ended. `watch` looks meanwhile at
    how far the chords are.
    """
    outcomes: list[Any] = [None] * len(nodes)
    pending: dict[int, Any] = {}
    for index, node in enumerate(nodes):
        try:
            pending[index] = build(node, cluster.tasks).apply_async()
        except Exception as exc:
            outcomes[index] = f"not sent: {exc!r}"
        if watch is not None:
            watch.look()
    latest = time.monotonic()
    while pending and time.monotonic() - latest < quiet:
        time.sleep(INTERVAL if watch is None else WATCHED)
        if watch is not None:
            watch.look()
        for index, result in list(pending.items()):
            outcomes[index] = outcome_of(result)
            if has_ended(outcomes[index]):
                del pending[index]
                latest = time.monotonic()
    if watch is not None:
        watch.end()
    expected = [evaluate(node, tolerate) for node in nodes]
    return [
        Miss(node, wanted, given)
        for node, wanted, given in zip(nodes, expected, outcomes, strict=True)
        if wanted != given
    ]


def shrunk(cluster: Cluster, miss: Miss, *, tolerate: bool, quiet: float = 5.0) -> Miss:
    """Return the simplest canvas near `miss` that goes wrong, too."""
    while True:
        misses = run(cluster, smaller(miss.node), tolerate=tolerate, quiet=quiet)
        if not misses:
            return miss
        miss = misses[0]
