"""A chord as a picture: its tree, laid out from top to bottom in a width that a phone has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..recovery.tree import Node
from .text import clean

__all__ = ("Picture", "Shape", "picture_of", "tone_of")

#: The width of all pictures, in their own units, which are the pixels of a narrow screen.
WIDTH = 288
PAD = 8
LINE = 18
#: A member that is drawn as a square, and the space to the next one.
SQUARE = 14
GAP = 4
#: Of so many members in a group each has a line with its name.
NAMED = 8
#: About so many units a character of a label takes.
CHARACTER = 6.6
ARROW = 26

TONES = {
    "SUCCESS": "done",
    "FAILURE": "failed",
    "REVOKED": "failed",
    "LOST": "lost",
    "STARTED": "runs",
    "RETRY": "runs",
    "RECEIVED": "runs",
}


def tone_of(state: str) -> str:
    """Return how a state is coloured."""
    return TONES.get(state, "waits")


@dataclass(frozen=True)
class Shape:
    """A rectangle, a text or an arrow.

    Attributes:
        kind: "rect", "text" or "arrow".
        x: From the left.
        y: From the top.
        width: Of a rectangle.
        height: Of a rectangle, or an arrow.
        style: The class by which it is coloured.
        text: That of a text, or what a rectangle stands for.
    """

    kind: str
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    style: str = ""
    text: str = ""


@dataclass
class Picture:
    """The shapes, and how high they are together."""

    shapes: list[Shape] = field(default_factory=list)
    height: float = 0.0
    width: int = WIDTH


def picture_of(tree: Node) -> Picture:
    """Return the picture of a chord."""
    picture = Picture()
    picture.height = _chord(picture.shapes, tree, 0, 1, WIDTH) + 1
    return picture


def _chord(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    """Draw header, arrow and body; return where they end."""
    head, foot = node.children
    end = _frame(shapes, head, x, y, width)
    shapes.append(Shape("arrow", x + width / 2, end + 3, height=ARROW - 6))
    return _part(shapes, foot, x, end + ARROW, width)


def _part(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    if node.kind == "chord":
        return _inner_chord(shapes, node, x, y, width)
    if node.kind == "group":
        return _frame(shapes, node, x, y, width)
    if node.kind == "chain":
        return _chain(shapes, node, x, y, width)
    return _named(shapes, node, x, y, width)


def _inner_chord(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    at = len(shapes)
    shapes.append(_label(x + PAD, y + LINE, f"chord {node.label}", width - 2 * PAD, "strong"))
    end = _chord(shapes, node, x + PAD, y + LINE + PAD, width - 2 * PAD) + PAD
    shapes.insert(at, Shape("rect", x, y, width, end - y, "frame"))
    return end


def _chain(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    for index, child in enumerate(node.children):
        if index:
            shapes.append(Shape("arrow", x + width / 2, y + 3, height=ARROW - 6))
            y += ARROW
        y = _part(shapes, child, x, y, width)
    return y


def _named(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    """Draw a task with its name."""
    told = f"{node.label}: {node.state.lower()}" if node.state else node.label
    height = LINE + PAD
    tone = tone_of(node.state) if node.state else "body"
    shapes.append(Shape("rect", x, y, width, height, f"task {tone}", clean(told, 200)))
    shapes.append(_label(x + PAD, y + LINE - 1, node.label, width - 2 * PAD))
    return y + height


def _frame(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    """Draw a group as a frame around its tasks."""
    at = len(shapes)
    inner = width - 2 * PAD
    is_header = node.label == "header"
    title = f"{node.label}: {node.done:,} of {node.count:,} done" if is_header else node.label
    shapes.append(_label(x + PAD, y + LINE, title, inner, "strong"))
    top = y + LINE + PAD
    # Squares side by side, all else in lines of its own, in the order of the header.
    squares: list[Node] = []
    are_named = len(node.children) <= NAMED
    for child in node.children:
        if child.kind == "task" and not are_named:
            squares.append(child)
            continue
        top = _squares(shapes, squares, x + PAD, top, inner)
        squares = []
        top = _part(shapes, child, x + PAD, top, inner) + GAP
    top = _squares(shapes, squares, x + PAD, top, inner)
    if not node.children and node.count:
        top = _share(shapes, node, x + PAD, top, inner)
    elif node.hidden:
        shapes.append(_label(x + PAD, top + LINE - 4, f"and {node.hidden:,} more", inner))
        top += LINE
    end = top + PAD - GAP
    shapes.insert(at, Shape("rect", x, y, width, end - y, "frame"))
    return end


def _squares(shapes: list[Shape], nodes: Sequence[Node], x: float, y: float, width: float) -> float:
    in_a_row = int((width + GAP) // (SQUARE + GAP))
    for index, node in enumerate(nodes):
        row, column = divmod(index, in_a_row)
        told = clean(f"{node.label}: {node.state.lower() or 'waits'}", 200)
        place = (x + column * (SQUARE + GAP), y + row * (SQUARE + GAP))
        shapes.append(Shape("rect", *place, SQUARE, SQUARE, f"task {tone_of(node.state)}", told))
    return y + -(-len(nodes) // in_a_row) * (SQUARE + GAP)


def _share(shapes: list[Shape], node: Node, x: float, y: float, width: float) -> float:
    """Draw how much of many tasks is done."""
    done = width * min(1.0, node.done / node.count)
    shapes.append(Shape("rect", x, y, width, SQUARE, "task waits"))
    if done:
        told = f"{node.done:,} of {node.count:,} done"
        shapes.append(Shape("rect", x, y, done, SQUARE, "task done", told))
    return y + SQUARE + GAP


def _label(x: float, y: float, text: str, width: float, style: str = "") -> Shape:
    most = max(4, int(width / CHARACTER))
    text = clean(text, 200)
    # The end of a dotted name says more than its beginning.
    shown = text if len(text) <= most else f"…{text[1 - most :]}"
    return Shape("text", x, y, style=style, text=shown)
