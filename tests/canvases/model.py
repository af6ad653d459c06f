"""Canvases as data: how one is built, written as code, and what it must give.

A node is a dictionary that JSON can carry:

``{"task": "n1", "does": "returns"}``
    A task; `does` is one of `DEEDS`.
``{"task": "n1", "replaced_by": node}``
    A task that replaces itself.
``{"chain": [node, ...], "piped": true}``
    `piped`: made with ``|``, which may give another canvas than `chain`, but the same value.
``{"group": [node, ...], "lazy": true}``
    Of at least two: in a chain, Celery takes the only member of a group for the group.
``{"chord": [node, ...], "body": node, "lazy": true, "choice": {...}}``
    `lazy`: the members come from a generator. `choice`: see `marked`.

A task returns its name and what it was given, so that a value tells the whole story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

from celery import chain, chord, group

from chordguard import is_chord_error, strict, tolerant
from chordguard.failures import line_of

Node = dict[str, Any]

#: What a task may do. One that raises `Ignore`, or whose result is ignored, has an outcome only
#: where a chord waits for it: inside a header.
DEEDS = ("returns", "sleeps", "fails", "raises_ignore", "is_forgotten")
AWAITED_DEEDS = ("raises_ignore", "is_forgotten")
HEALTHY_DEEDS = ("returns", "sleeps", "is_forgotten")

#: The error of a chord names ids: it is known by its class alone.
CHORD_ERROR = "ChordError"


@dataclass(frozen=True)
class Failed:
    """The outcome of a task that failed; of a chord, the one that made it fail is its `cause`."""

    error: str
    cause: Failed | None = field(default=None, compare=False)


class NeverRan(list):
    """The outcomes of a group that was not started because something before it failed."""

    def __init__(self, outcomes: list[Any], failed: Failed) -> None:
        super().__init__(outcomes)
        self.failed = failed


# Building


def build(node: Node, tasks: Any) -> Any:
    """Return the canvas; `tasks` are those of the tests by name."""
    if "chain" in node:
        steps = [build(step, tasks) for step in node["chain"]]
        return reduce(or_, steps) if node.get("piped") else chain(*steps)
    if "group" in node:
        return group(_members_of(node, "group", tasks))
    if "chord" in node:
        canvas = chord(_members_of(node, "chord", tasks), build(node["body"], tasks))
        return marked(canvas, node.get("choice"))
    if "replaced_by" in node:
        return tasks.replaced_step.s(node=node["replaced_by"])
    forgotten = node["does"] == "is_forgotten"
    task = tasks.forgotten_step if forgotten else tasks.step
    return task.s(name=node["task"], does=node["does"])


def _members_of(node: Node, key: str, tasks: Any) -> Any:
    members = (build(member, tasks) for member in node[key])
    return members if node.get("lazy") else list(members)


def marked(canvas: Any, choice: dict[str, Any] | None) -> Any:
    """Return the chord with its choice: `tolerate`, and what `tolerant()` takes."""
    if choice is None:
        return canvas
    given = {key: choice[key] for key in choice if key != "tolerate"}
    return tolerant(canvas, **given) if choice["tolerate"] else strict(canvas, **given)


def code(node: Node) -> str:
    """Return the canvas as Celery code."""
    if "chain" in node:
        steps = list(map(code, node["chain"]))
        return f"({' | '.join(steps)})" if node.get("piped") else f"chain({', '.join(steps)})"
    if "group" in node:
        return f"group({_members_as_code(node, 'group')})"
    if "chord" in node:
        text = f"chord({_members_as_code(node, 'chord')}, {code(node['body'])})"
        choice = node.get("choice")
        if choice is None:
            return text
        given = "".join(f", {key}={choice[key]!r}" for key in choice if key != "tolerate")
        return f"{'tolerant' if choice['tolerate'] else 'strict'}({text}{given})"
    if "replaced_by" in node:
        return f"replaced_by({code(node['replaced_by'])})"
    return f"{node['does']}.s({node['task']!r})"


def _members_as_code(node: Node, key: str) -> str:
    members = ", ".join(map(code, node[key]))
    return f"(task for task in [{members}])" if node.get("lazy") else f"[{members}]"


# What a canvas must give: a value, `Failed`, or for a group of results a `list` of outcomes. A
# value that a task returns is a tuple here, JSON's lists become tuples: a list is always a group.


def evaluate(node: Node, tolerate: bool, given: tuple[Any, ...] = ()) -> Any:
    """Return the outcome of a canvas.

    Arguments:
        node: The canvas.
        tolerate: Whether a chord without a choice of its own tolerates failed members.
        given: What the step before handed on.
    """
    if "chain" in node:
        return _chained(node["chain"], tolerate, given)
    if "group" in node:
        return _members(node["group"], tolerate, given)
    if "chord" in node:
        ended = _gathered(
            _members(node["chord"], tolerate, given), node.get("choice") or {"tolerate": tolerate}
        )
        body = node["body"]
        if isinstance(ended, Failed):
            return _body_failed(body, ended)
        return evaluate(body, tolerate, (ended,))
    if "replaced_by" in node:
        outcome = evaluate(node["replaced_by"], tolerate)
        # Celery gathers the results of a group that takes a task's place.
        if isinstance(outcome, list):
            return _gathered(outcome, {"tolerate": tolerate})
        return outcome
    if node["does"] == "fails":
        return Failed(f"ValueError: {node['task']}")
    if node["does"] == "raises_ignore":
        return Failed("Ignore: ")
    return (node["task"], *given)


def _chained(steps: list[Node], tolerate: bool, given: tuple[Any, ...]) -> Any:
    outcome = evaluate(steps[0], tolerate, given)
    for step in steps[1:]:
        if isinstance(outcome, NeverRan):
            return all_failed(steps[-1], outcome.failed)
        if isinstance(outcome, list):
            # What follows a group is the body of a chord.
            outcome = _gathered(outcome, {"tolerate": tolerate})
            if isinstance(outcome, Failed) and step is steps[-1]:
                return _body_failed(step, outcome)
        if isinstance(outcome, Failed):
            return all_failed(steps[-1], outcome)
        outcome = evaluate(step, tolerate, (outcome,))
    return outcome


def _members(members: list[Node], tolerate: bool, given: tuple[Any, ...]) -> list[Any]:
    outcomes: list[Any] = []
    for member in members:
        outcome = evaluate(member, tolerate, given)
        # A group in a group is taken apart.
        outcomes.extend(outcome if "group" in member else [outcome])
    return outcomes


def _gathered(outcomes: list[Any], choice: dict[str, Any]) -> Any:
    """Return what the body of a chord gets, or that the chord failed."""
    leaves = list(_leaves(outcomes))
    failed = [leaf for leaf in leaves if isinstance(leaf, Failed)]
    if len(failed) > _allowed(choice, len(leaves)):
        return Failed(CHORD_ERROR, failed[0])
    return _handed_over(outcomes, choice.get("error_format", "string"))


def _allowed(choice: dict[str, Any], size: int) -> float:
    if not choice["tolerate"]:
        return 0
    bound = choice.get("max_errors")
    if bound is None:
        return size
    return bound * size if isinstance(bound, float) else bound


def _handed_over(outcome: Any, error_format: str) -> Any:
    if isinstance(outcome, list):
        return tuple(_handed_over(item, error_format) for item in outcome)
    if isinstance(outcome, Failed):
        return outcome.error if error_format == "string" else ("record", outcome.error)
    return outcome


def _leaves(outcome: Any) -> Iterator[Any]:
    if isinstance(outcome, list):
        for item in outcome:
            yield from _leaves(item)
    else:
        yield outcome


def _body_failed(body: Node, failed: Failed) -> Any:
    """Return the outcome of a body whose chord failed; the tasks of a group fail with the cause."""
    if "group" not in body or failed.cause is None:
        return all_failed(body, failed)
    # For what follows it, the group is no body of its own.
    return NeverRan(all_failed(body, failed.cause), failed)


def all_failed(node: Node, failed: Failed) -> Any:
    """Return the outcome of a canvas that never ran because of a failure before it."""
    if "chain" in node:
        return all_failed(node["chain"][-1], failed)
    if "chord" in node:
        return all_failed(node["body"], failed)
    if "group" in node:
        outcomes: list[Any] = []
        for member in node["group"]:
            outcome = all_failed(member, failed)
            outcomes.extend(outcome if "group" in member else [outcome])
        return NeverRan(outcomes, failed)
    return failed


# What a canvas gave


def outcome_of(result: Any) -> Any:
    """Return how a result ended, in the words of `evaluate`; None where it did not."""
    members = getattr(result, "results", None)
    if members is not None:
        return [outcome_of(member) for member in members]
    state, value = result.state, result.result
    if state == "SUCCESS":
        return in_words(value)
    if isinstance(value, BaseException) and result.ready():
        return Failed(_shortened(line_of(value)))
    return None


def in_words(value: Any) -> Any:
    """Return a value as `evaluate` words it: without the ids that errors name."""
    if is_chord_error(value):
        return ("record", _shortened(value["text"]))
    if isinstance(value, (list, tuple)):
        return tuple(map(in_words, value))
    return _shortened(value) if isinstance(value, str) else value


def _shortened(text: str) -> str:
    return CHORD_ERROR if text.startswith(f"{CHORD_ERROR}: ") else text


def has_ended(outcome: Any) -> bool:
    return all(leaf is not None for leaf in _leaves(outcome))


# Names, sizes, smaller ones


def numbered(node: Node) -> Node:
    """Return a copy whose tasks are called n1, n2 ... in the order of the text."""
    count = 0

    def name(task: Node) -> Node:
        nonlocal count
        count += 1
        return {**task, "task": f"n{count}"}

    return _mapped(node, name)


def _mapped(node: Node, change: Callable[[Node], Node]) -> Node:
    copy = dict(node)
    for key in ("chain", "group", "chord"):
        if key in node:
            copy[key] = [_mapped(child, change) for child in node[key]]
    for key in ("body", "replaced_by"):
        if key in node:
            copy[key] = _mapped(node[key], change)
    return change(copy) if "task" in node else copy


def size(node: Node) -> int:
    """Return how many tasks a canvas has."""
    children = [child for key in ("chain", "group", "chord") for child in node.get(key, ())]
    children += [node[key] for key in ("body", "replaced_by") if key in node]
    return sum(map(size, children)) + ("task" in node)


def smaller(node: Node) -> list[Node]:
    """Return the canvases that are one step simpler, the smallest first."""
    return sorted(map(numbered, filter(has_outcome, _simpler(node))), key=size)


def _simpler(node: Node) -> Iterator[Node]:
    for key in ("chain", "group", "chord"):
        children = node.get(key, ())
        yield from children
        for index, child in enumerate(children):
            if len(children) > (1 if key == "chord" else 2):
                yield {**node, key: [*children[:index], *children[index + 1 :]]}
            for less in _simpler(child):
                yield {**node, key: [*children[:index], less, *children[index + 1 :]]}
    for key in ("body", "replaced_by"):
        if key in node:
            yield node[key]
            yield from ({**node, key: less} for less in _simpler(node[key]))
    for key in ("lazy", "piped", "choice"):
        if node.get(key):
            yield {name: value for name, value in node.items() if name != key}
    if node.get("does", "returns") != "returns":
        yield {**node, "does": "returns"}


def gives_one(node: Node) -> bool:
    """Tell whether a canvas gives the result of one task, not those of a group."""
    if "chain" in node:
        return gives_one(node["chain"][-1])
    if "chord" in node:
        return gives_one(node["body"])
    return "group" not in node


def has_outcome(node: Node, awaited: bool = False) -> bool:
    """Tell whether a canvas gives something at all; `awaited`: it is inside a header."""
    children = [*node.get("chain", ()), *node.get("group", ())]
    if "body" in node:
        children.append(node["body"])
    if not all(has_outcome(child, awaited) for child in children):
        return False
    if not all(has_outcome(child, True) for child in node.get("chord", ())):
        return False
    if "replaced_by" in node:
        replacement = node["replaced_by"]
        is_one = "group" in replacement or gives_one(replacement)
        return is_one and has_outcome(replacement)
    return awaited or node.get("does") not in AWAITED_DEEDS
