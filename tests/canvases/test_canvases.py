"""Some random canvases, on real workers; ``python -m tests.canvases`` runs more of them."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.canvases import batch
from tests.canvases.model import (
    Failed,
    code,
    evaluate,
    has_outcome,
    in_words,
    numbered,
    size,
    smaller,
)
from tests.canvases.strategies import canvases, drawn
from tests.canvases.watching import Watch

#: Another seed gives other canvases.
SEED = int(os.environ.get("CHORDGUARD_CANVAS_SEED", "1"))
#: How many run on each backend.
COUNT = 25

A, B, C = ({"task": name, "does": "returns"} for name in "abc")
FAILS = {"task": "f", "does": "fails"}
BOOM = "ValueError: f"


@pytest.mark.parametrize(
    ("backend_kind", "tolerate"),
    [("redis", True), ("sqlite", False), ("postgresql", True), ("mysql", False)],
)
def test_random_canvases_give_what_they_must(clusters, backend_kind, tolerate):
    settings = {"chord_propagate_errors": not tolerate, "chord_unlock_first_delay": 300}
    cluster = clusters(backend_kind, settings=settings)

    watch = Watch(cluster)
    misses = batch.run(cluster, drawn(COUNT, SEED), tolerate=tolerate, watch=watch)

    seed = f"CHORDGUARD_CANVAS_SEED={SEED}"
    assert not misses, "\n".join([seed, *map(str, misses)])
    assert not watch.wrong, "\n".join([seed, *watch.wrong])
    assert watch.looks


def test_canvas_that_goes_wrong_is_found_and_made_smaller(clusters):
    """Celery alone runs what follows a chord with a group for its body once per task."""
    cluster = clusters("redis", patched=False)
    chain = [{"chord": [A, B], "body": {"group": [A, B]}}, {"group": [A, {"chain": [B, C]}]}]
    nodes = [{"chain": [A, B]}, numbered({"chain": chain, "piped": True})]

    (miss,) = batch.run(cluster, nodes, tolerate=False)
    smallest = batch.shrunk(cluster, miss, tolerate=False)

    assert nodes[1] == miss.node
    assert "chord([returns.s('n1'), returns.s('n2')], group(" in str(miss)
    assert size(smallest.node) < size(miss.node)
    assert smallest.expected != smallest.given


@pytest.mark.parametrize(
    ("node", "strict", "tolerant"),
    [
        ({"chain": [A, B]}, ("b", ("a",)), ("b", ("a",))),
        ({"chord": [A, FAILS], "body": B}, Failed("ChordError"), ("b", (("a",), BOOM))),
        (
            {"chord": [A, FAILS], "body": B, "choice": {"tolerate": True, "error_format": "dict"}},
            ("b", (("a",), ("record", BOOM))),
            ("b", (("a",), ("record", BOOM))),
        ),
        (
            {"chord": [FAILS, FAILS], "body": B, "choice": {"tolerate": True, "max_errors": 0.5}},
            Failed("ChordError"),
            Failed("ChordError"),
        ),
        ({"group": [A, {"group": [B, C]}]}, [("a",), ("b",), ("c",)], [("a",), ("b",), ("c",)]),
        ({"chain": [{"group": [A, FAILS]}, B]}, Failed("ChordError"), ("b", (("a",), BOOM))),
        ({"chain": [FAILS, {"group": [A, B]}, C]}, Failed(BOOM), Failed(BOOM)),
        # A chain in a chain is one chain.
        ({"chain": [{"chain": [FAILS, {"group": [A, B]}]}, C]}, Failed(BOOM), Failed(BOOM)),
        (
            {"chord": [{"chain": [FAILS, {"group": [A, B]}]}, C], "body": A},
            Failed("ChordError"),
            ("a", ((BOOM, BOOM), ("c",))),
        ),
        (
            {"chain": [A, {"task": "r", "replaced_by": {"group": [B, C]}}]},
            (("b",), ("c",)),
            (("b",), ("c",)),
        ),
    ],
)
def test_evaluation(node, strict, tolerant):
    assert strict == evaluate(node, False)
    assert tolerant == evaluate(node, True)


def test_values_are_compared_without_ids():
    assert ("a", ("ChordError", 1)) == in_words(["a", ["ChordError: Dependency 1-2 raised x", 1]])


def test_the_same_seed_gives_the_same_canvases():
    found = drawn(20, 7)

    assert 20 == len(found) == len(set(map(code, found)))
    assert found == drawn(20, 7)
    assert found != drawn(20, 8)


def test_healthy_canvases_do_not_fail():
    assert not any("fails" in code(node) for node in drawn(50, 1, healthy=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(canvases())
def test_canvas_can_be_made_smaller(node):
    assert has_outcome(node)
    assert numbered(node) == node
    assert code(node)
    for less in smaller(node):
        assert size(less) <= size(node)
        assert code(less) != code(node)
