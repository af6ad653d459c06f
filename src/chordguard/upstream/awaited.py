"""Celery's result objects: the members that one is made of, and the chord whose result it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ("group_id_of", "header_of_chord", "leaves_of")


def header_of_chord(result: Any) -> Any:
    """Return the result of the header of the chord that gives `result`.

    A group that is nobody's body is the header itself. None: `result` is that of no chord, or was
    restored without its parents.
    """
    groups = []
    node = result
    while node is not None:
        if getattr(node, "results", None) is not None:
            groups.append(node)
        node = getattr(node, "parent", None)
    # A group without a parent is the header itself; else the body may be a group, too.
    is_body = bool(groups) and groups[0] is result and len(groups) > 1
    return groups[1 if is_body else 0] if groups else None


def group_id_of(chord: Any) -> str:
    """Return the id of the header of a chord, given that id or the chord's result.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(chord, str):
        return chord
    header = header_of_chord(chord)
    if header is None:
        raise TypeError(
            f"expected the id of a chord's header or a chord's result, got {chord!r}: pass what "
            "chord(...).apply_async() returned, or its .parent.id"
        )
    group_id: str = header.id
    return group_id


def leaves_of(result: Any) -> Iterator[Any]:
    """Yield the results of single tasks that `result` is made of, in order."""
    members = getattr(result, "results", None)
    if members is None:
        yield result
    else:
        for member in members:
            yield from leaves_of(member)
