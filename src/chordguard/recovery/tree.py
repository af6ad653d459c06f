"""A chord as a tree: its header's members, nested as they are, and what its body is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states

from ..ledger.packing import leaf_ids
from ..upstream.signatures import body_of, kind_of, options_of, tasks_of
from .kinds import Diagnosis
from .survey import name_of

if TYPE_CHECKING:
    from .members import Member

__all__ = ("Node", "inner_chords", "outer_chord", "tree_of")

#: How many nodes deep a canvas is told.
MOST_DEEP = 12


@dataclass(frozen=True)
class Node:
    """A part of a chord.

    Attributes:
        kind: "chord" (a header and a body), "group", "chain" or "task".
        label: Its name, or its id.
        id: The id of the task, or of a chord's header; empty for a group.
        state: That of a task of a header; empty where nobody asks for it.
        children: What it is made of.
        count: How many tasks there are under it, those that are left out among them.
        done: How many of them are done, where that is known.
    """

    kind: str
    label: str
    id: str = ""
    state: str = ""
    children: tuple[Node, ...] = ()
    count: int = 1
    done: int = 0

    @property
    def hidden(self) -> int:
        """How many of its tasks are left out."""
        return 0 if self.kind == "task" else self.count - sum(n.count for n in self.children)


def tree_of(
    found: Diagnosis,
    members: Mapping[str, Member],
    inner: Mapping[str, Node] | None = None,
    most: int = 100,
) -> Node:
    """Return a chord as a tree: its first child is the header, its second one the body.

    Arguments:
        found: Its diagnosis.
        members: What is known of its members, by id.
        inner: The trees of members that are themselves chords, by the members' ids.
        most: Of so many members each has a node; the others are counted.
    """
    header = found.header or ()
    size = found.record.size if found.record else None
    returned = found.record.returned if found.record else 0
    nodes, _ = _members(header, members, inner or {}, most)
    count = max(sum(1 for _ in leaf_ids(header)), size or 0)
    head = Node("group", "header", children=nodes, count=count, done=returned)
    foot = _canvas(found.body, MOST_DEEP)
    name = name_of(found.body)
    return Node("chord", name, found.group_id, children=(head, foot), count=count, done=returned)


def _members(
    header: Sequence[Any], members: Mapping[str, Member], inner: Mapping[str, Node], room: int
) -> tuple[tuple[Node, ...], int]:
    nodes: list[Node] = []
    for item in header:
        if room <= 0:
            break
        if isinstance(item, str):
            room -= 1
            nodes.append(inner.get(item) or _member(item, members.get(item)))
            continue
        children, left = _members(item, members, inner, room)
        done = sum(_is_done(members.get(id_)) for id_ in leaf_ids(item))
        count = sum(1 for _ in leaf_ids(item))
        nodes.append(Node("group", "group", children=children, count=count, done=done))
        room = left
    return tuple(nodes), room


def _member(id_: str, member: Member | None) -> Node:
    if member is None:
        return Node("task", id_, id_)
    return Node("task", member.name or id_, id_, member.state, done=int(_is_done(member)))


def _is_done(member: Member | None) -> bool:
    return member is not None and member.state in states.READY_STATES


def _canvas(signature: Any, room: int) -> Node:
    """Return what a signature is made of."""
    if signature is None:
        return Node("task", "?")
    kind = kind_of(signature)
    id_ = str(options_of(signature).get("task_id") or "")
    if kind is None or room <= 0:
        return Node("task", name_of(signature), id_)
    if kind == "chord":
        header = (signature.get("kwargs") or {}).get("header") or ()
        tasks = tasks_of(header) if isinstance(header, Mapping) else list(header)
        head = _of("group", "header", tasks, room)
        foot = _canvas(body_of(signature), room - 1)
        return Node("chord", "chord", id_, children=(head, foot), count=head.count)
    return _of(kind, kind, tasks_of(signature), room)


def _of(kind: str, label: str, tasks: Sequence[Any], room: int) -> Node:
    children = tuple(_canvas(task, room - 1) for task in tasks)
    return Node(kind, label, children=children, count=sum(child.count for child in children))


def outer_chord(found: Diagnosis) -> str | None:
    """Return the id of the chord whose header this chord is a member of."""
    group_id = options_of(found.body).get("group_id") if found.body is not None else None
    return group_id if isinstance(group_id, str) and group_id else None


def inner_chords(found: Diagnosis, live: Sequence[Diagnosis]) -> Iterator[tuple[str, Diagnosis]]:
    """Yield (member, chord) for the members of a chord that are themselves `live` chords."""
    ids = set(leaf_ids(found.header or ()))
    for each in live:
        if each.group_id != found.group_id and outer_chord(each) == found.group_id:
            for task_id in each.body_ids:
                if task_id in ids:
                    yield task_id, each
