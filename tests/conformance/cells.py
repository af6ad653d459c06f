"""Run the catalogue: all canvases of one cluster at once, each cell judged by its outcome."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import states

from tests.conformance.catalogue import FAILS, HANGS, RIGHT, WRONG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conformance.catalogue import Scenario
    from tests.harness import Cluster, Outcome

#: Seconds for a canvas that is expected to end.
ENDS_WITHIN = 60.0


def run_all(
    cluster: Cluster, scenarios: Sequence[Scenario], backend: str, quiet: float | None
) -> dict[str, tuple[str, Outcome]]:
    """Publish every canvas that has a cell on `backend`, then see how each of them ends.

    A canvas hangs when nothing but polling went on for `quiet` seconds.
    """
    tasks = SimpleNamespace(**vars(cluster.tasks), nowhere=f"{cluster.stack.name}-nowhere")
    published = [
        (scenario, scenario.canvas(tasks).apply_async(**scenario.options))
        for scenario in scenarios
        if backend in scenario.backends
    ]
    judged = {}
    for scenario, result in published:
        outcome = cluster.outcome(result, deadline=ENDS_WITHIN, quiet=quiet)
        judged[str(scenario)] = (judge(outcome, scenario.expected), outcome)
    return judged


def judge(outcome: Outcome, expected: Any) -> str:
    if outcome.hung:
        return HANGS
    if outcome.state != states.SUCCESS:
        return FAILS
    return RIGHT if outcome.value == expected else WRONG


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what `function` returned for hashable arguments after the first."""
    kept: dict[Any, Any] = {}

    def call(first: Any, *key: Any) -> Any:
        if key not in kept:
            kept[key] = function(first, *key)
        return kept[key]

    return call
