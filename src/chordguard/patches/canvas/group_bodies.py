"""What follows a chord whose body is a group runs once for each task of the group.

A chord that is a step of a chain hands the steps that follow on to its body, and a body that is a
group hands them on to each of its tasks: in `chord(header, group(a, b)) | group(c, d)` both `c` and
`d` run twice, each time with a single value. A task that follows makes a chord of the group, a
group, a chain or (from 5.6 on) a chord does not always. Here the group and what follows it
are a chord, which runs it once with the list. Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...engine.patch import Defect, Patch
from ...upstream.signatures import giving, kind_of

patch = Patch(
    "group_bodies",
    Defect(
        "B14", "what follows a chord whose body is a group runs once for each task of the group"
    ),
)


@patch.wraps("celery.canvas", "_chain.prepare_steps")
def prepare_steps(wrapped: Any, chain: Any, args: Any, kwargs: Any) -> Any:
    return _prepare(wrapped, chain, *args, **kwargs)


def _prepare(
    wrapped: Any, chain: Any, args: Any, kwargs: Any, tasks: Any, *rest: Any, **options: Any
) -> Any:
    if any(map(_gives_a_group, tasks)):
        tasks = _joined(tasks, chain.app)
        if not options.get("clone", True):
            # The tasks of the chain itself are frozen.
            chain.tasks = tasks
    return wrapped(args, kwargs, tasks, *rest, **options)


def _joined(steps: Iterable[Any], app: Any) -> list[Any]:
    """Return the steps; those that follow a chord that gives a group are part of its body."""
    from celery.canvas import maybe_signature

    joined: list[Any] = []
    for step in steps:
        if joined and _gives_a_group(joined[-1]):
            chord = joined[-1].clone()
            chord.body = chord.body | maybe_signature(step, app=app)
            joined[-1] = chord
        else:
            joined.append(maybe_signature(step, app=app))
    return joined


def _gives_a_group(step: Any) -> bool:
    """Tell whether `step` is a chord that gives the results of a group."""
    return kind_of(step) == "chord" and _ends_in_a_group(step)


def _ends_in_a_group(signature: Any) -> bool:
    return kind_of(signature) == "group" or any(map(_ends_in_a_group, giving(signature) or ()))
