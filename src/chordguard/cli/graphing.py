"""The command `graph`: a chord's tree as Mermaid."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from ..ledger.access import bounded_ledger
from ..recovery.evidence import examine, examine_all
from ..recovery.kinds import Diagnosis
from ..recovery.members import members_of
from ..recovery.tree import Node, inner_chords, tree_of
from .calling import HEALTHY, Answer, Cannot, command

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.model import Ledger
    from .screen import Screen

__all__ = ("graph",)

#: So many members are drawn, unless others are asked for.
SHOWN = 50

#: So many characters of a label are shown.
LABEL = 60

#: How deep chords are drawn that are members of chords.
MOST_DEEP = 5

#: How a state is drawn.
CLASSES = {
    "SUCCESS": "done",
    "FAILURE": "failed",
    "REVOKED": "failed",
    "LOST": "lost",
    "STARTED": "running",
}
STYLES = {
    "done": "fill:#d8f3dc,stroke:#2d6a4f,color:#14281d",
    "failed": "fill:#ffd9d9,stroke:#a4161a,color:#3b0708",
    "lost": "fill:#ffe8cc,stroke:#9c4a00,color:#3d1d00",
    "running": "fill:#d7e8ff,stroke:#1d4e89,color:#0b1f38",
}

#: What Mermaid takes as it is in a quoted label.
_PLAIN = re.compile(r"[^\w .,:/@()+*|=-]")


@command("graph")
@click.argument("group_id", metavar="ID")
@click.option(
    "--limit", type=click.IntRange(1), default=SHOWN, show_default=True, help="Draw N members."
)
def graph(app: Celery, group_id: str, limit: int) -> Answer:
    """Print a chord's tree as Mermaid.

    ID is the id of its header. Members that are themselves live chords are drawn with theirs. The
    ledger and the stored results are read, no worker is asked.
    """
    with bounded_ledger(app) as ledger:
        found = examine(ledger, group_id)
        if found.record is None:
            raise Cannot(f"no chord {group_id} in the ledger: `celery chords list` tells the ids")
        live = examine_all(ledger, ledger.group_ids())
        tree = _tree(ledger, found, live, limit, MOST_DEEP)
    text = "\n".join(mermaid(tree))

    def show(_: Screen) -> None:
        # Not by the screen: a terminal shall not break the lines.
        click.echo(text)

    return Answer(HEALTHY, {"graph": text}, show)


def _tree(ledger: Ledger, found: Diagnosis, live: list[Diagnosis], limit: int, room: int) -> Node:
    inner = {
        task_id: _tree(ledger, each, live, limit, room - 1)
        for task_id, each in (inner_chords(found, live) if room else ())
    }
    members = {member.id: member for member in members_of(ledger, found)}
    return tree_of(found, members, inner, limit)


def mermaid(tree: Node) -> list[str]:
    """Return the lines of a flowchart."""
    drawing = _Drawing()
    drawing.chord(tree, "    ")
    styles = [f"    classDef {name} {style}" for name, style in STYLES.items()]
    return ["flowchart TB", *drawing.lines, *styles]


class _Drawing:
    """The lines of a flowchart as they are drawn."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"n{self._count}"

    def node(self, node: Node, indent: str) -> tuple[str, str]:
        """Draw a node; return where arrows to it lead, and whence those from it come."""
        if node.kind == "chord":
            return self.chord(node, indent)
        if node.kind == "chain":
            return self._chain(node, indent)
        if node.kind == "group":
            name = self.group(node, indent)
            return name, name
        name = self._name()
        state = f"<br/>{_label(node.state)}" if node.state else ""
        style = CLASSES.get(node.state)
        self.lines.append(
            f'{indent}{name}["{_label(node.label)}{state}"]{f":::{style}" if style else ""}'
        )
        return name, name

    def group(self, node: Node, indent: str) -> str:
        """Draw a group as a frame; return its name."""
        name = self._name()
        known = f": {node.done} of {node.count} done" if node.label == "header" else ""
        self.lines.append(f'{indent}subgraph {name}["{_label(node.label + known)}"]')
        for child in node.children:
            self.node(child, indent + "    ")
        if node.hidden or not node.children:
            rest = f"{node.hidden} more" if node.children else f"{node.count} members"
            self.lines.append(f'{indent}    {self._name()}(["{rest}"])')
        self.lines.append(f"{indent}end")
        return name

    def chord(self, node: Node, indent: str) -> tuple[str, str]:
        """Draw a chord: its header, and an arrow to its body."""
        head, foot = node.children
        first, _ = self.node(head, indent)
        entry, last = self.node(foot, indent)
        self.lines.append(f"{indent}{first} --> {entry}")
        return first, last

    def _chain(self, node: Node, indent: str) -> tuple[str, str]:
        ends: list[Any] = [self.node(child, indent) for child in node.children]
        for (_, before), (after, _) in pairwise(ends):
            self.lines.append(f"{indent}{before} --> {after}")
        return (ends[0][0], ends[-1][1]) if ends else self.node(Node("task", "?"), indent)


def _label(text: str) -> str:
    """Return a label in which nothing has a meaning to Mermaid, or to a browser."""
    cut = text if len(text) <= LABEL else f"{text[:LABEL]}..."
    return _PLAIN.sub(lambda found: f"#{ord(found[0])};", cut)
