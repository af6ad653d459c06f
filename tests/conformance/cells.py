"""Run the catalogue: all canvases of one cluster at once, each cell judged by its outcome."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import states

from chordguard.upstream.awaited import leaves_of
from tests.conformance.catalogue import FAILS, HANGS, RIGHT, WRONG
from tests.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conformance.catalogue import Scenario
    from tests.harness import Cluster, Outcome

#: Seconds for a canvas that is expected to end.
ENDS_WITHIN = 60.0
#: Seconds without anything but polling after which what hangs beside another hanging canvas does.
STILL_QUIET = 0.4


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
        if scenario.has_cell(backend)
    ]
    judged = {}
    for scenario, result in published:
        outcome = cluster.outcome(result, deadline=ENDS_WITHIN, quiet=quiet)
        judged[str(scenario)] = (judge(outcome, scenario.expected), outcome)
        if outcome.hung and quiet is not None:
            # What was published with it had as long a time.
            quiet = min(quiet, STILL_QUIET)
    return judged


def run_strict(
    cluster: Cluster,
    scenarios: Sequence[Scenario],
    backend: str,
    quiet: float | None,
    folder: Path,
) -> dict[str, tuple[str, Outcome]]:
    """Publish every canvas with an errback, see how each ends and how often its errback is called.

    A canvas is right that fails, calls its errback once and, for A9, names so many members; or
    that has no reason to fail, gives its value and calls no errback.
    """
    errback = cluster.tasks.errback_new
    published = []
    cluster.app.conf.task_allow_error_cb_on_chord_header = True
    try:
        for number, scenario in enumerate(scenarios):
            if scenario.has_cell(backend):
                record = str(folder / str(number))
                canvas = scenario.canvas(cluster.tasks).on_error(errback.s(record=record))
                published.append((scenario, canvas.apply_async(), Path(record)))
    finally:
        cluster.app.conf.task_allow_error_cb_on_chord_header = False
    ended = [
        (scenario, path, cluster.outcome(result, deadline=ENDS_WITHIN, quiet=quiet))
        for scenario, result, path in published
    ]
    # A call too many may come last.
    wait_until(cluster.is_idle, timeout=ENDS_WITHIN, what="idle worker")
    judged = {}
    for scenario, path, outcome in ended:
        calls = len(path.read_text().splitlines()) if path.exists() else 0
        judged[str(scenario)] = (judge_strictly(scenario, outcome, calls), outcome)
    return judged


def judge_strictly(scenario: Scenario, outcome: Outcome, calls: int) -> str:
    """Judge how a canvas ended that had `calls` of its errback."""
    if outcome.hung:
        return HANGS
    if not scenario.fails:
        return judge(outcome, scenario.expected) if calls == 0 else WRONG
    if scenario.defect == "A9" and len(members_named(outcome)) != scenario.expected:
        return WRONG
    return RIGHT if outcome.state == states.FAILURE and calls == scenario.errbacks else WRONG


def members_named(outcome: Outcome) -> list[str]:
    """Return the members that failed and are named in the error of their chord."""
    # These very results: one of `rpc://` is read once.
    members = leaves_of(outcome.result.parent)
    failed = [member.id for member in members if member.state == states.FAILURE]
    return [id_ for id_ in failed if id_ in str(outcome.value)]


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
