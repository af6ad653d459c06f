"""Hypothesis strategies for the canvases of `tests.canvases.model`."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests.canvases.model import (
    AWAITED_DEEDS,
    DEEDS,
    HEALTHY_DEEDS,
    Node,
    code,
    gives_one,
    numbered,
    size,
)

#: How deep chains, groups and chords are nested in one another.
DEPTH = 4
#: Tasks of one canvas: beyond that its messages grow, not what it shows.
LARGEST = 40

CHOICES: list[dict[str, Any]] = [
    {"tolerate": False},
    {"tolerate": True},
    {"tolerate": True, "max_errors": 1},
    {"tolerate": True, "max_errors": 0.5},
    {"tolerate": True, "error_format": "dict"},
]


def drawn(count: int, number: int, *, healthy: bool = False) -> list[Node]:
    """Return so many different canvases; the same `number` gives the same ones."""
    found: dict[str, Node] = {}

    @seed(number)
    @settings(
        # Hypothesis tries some of them more than once.
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(canvases(healthy))
    def keep(node: Node) -> None:
        found.setdefault(code(node), node)

    keep()
    return list(found.values())[:count]


@st.composite
def canvases(draw: st.DrawFn, healthy: bool = False) -> Node:
    """Draw a canvas; one that is `healthy` has no failing task."""
    node = _composite(draw, DEPTH, False, healthy)
    assume(size(node) <= LARGEST)
    return numbered(node)


# What is drawn inside a header is awaited by a chord.


def _node(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    kinds = [_task, _task, _replaced, _composite, _composite] if depth else [_task]
    return draw(st.sampled_from(kinds))(draw, depth, awaited, healthy)


def _task(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    deeds = [
        deed
        for deed in (HEALTHY_DEEDS if healthy else DEEDS)
        if awaited or deed not in AWAITED_DEEDS
    ]
    # Most tasks do well, otherwise hardly a body would run.
    return {"task": "", "does": draw(st.sampled_from(["returns"] * len(deeds) + deeds))}


def _replaced(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    kinds = [_task, _chord, _chord, _group] if depth > 1 else [_task]
    node = draw(st.sampled_from(kinds))(draw, depth - 1, False, healthy)
    # What takes the place of a task gives one result, as the task would have; of a group Celery
    # makes a chord itself.
    assume("group" in node or gives_one(node))
    return {"task": "", "replaced_by": node}


def _composite(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    return draw(st.sampled_from([_chord, _chord, _chain, _group]))(draw, depth, awaited, healthy)


def _chain(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    node: Node = {"chain": [_node(draw, depth - 1, awaited, healthy) for _ in _some(draw, 2)]}
    return {**node, "piped": True} if _one_in(draw, 3) else node


def _group(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    node: Node = {"group": [_node(draw, depth - 1, awaited, healthy) for _ in _some(draw, 2)]}
    return {**node, "lazy": True} if _one_in(draw, 4) else node


def _chord(draw: st.DrawFn, depth: int, awaited: bool, healthy: bool) -> Node:
    node: Node = {
        "chord": [_node(draw, depth - 1, True, healthy) for _ in _some(draw, 1)],
        "body": _node(draw, depth - 1, awaited, healthy),
    }
    if _one_in(draw, 4):
        node["lazy"] = True
    if _one_in(draw, 3):
        node["choice"] = draw(st.sampled_from(CHOICES))
    return node


def _some(draw: st.DrawFn, least: int) -> range:
    return range(draw(st.integers(least, 3)))


def _one_in(draw: st.DrawFn, number: int) -> bool:
    return draw(st.integers(1, number)) == number
