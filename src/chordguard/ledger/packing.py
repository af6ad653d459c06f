"""How headers and signatures are packed into text and bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from kombu import serialization
from kombu.utils.encoding import ensure_bytes

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "Header",
    "header_of",
    "joined",
    "leaf_ids",
    "pack",
    "pack_data",
    "unpack_data",
)

#: The ids of a header's members in header order; a nested list for a member that is a
#: group of results (a chain that ends in a group).
Header = Sequence[Any]


def leaf_ids(header: Header) -> Iterator[str]:
    """Yield the id of each member, in header order."""
    for item in header:
        if isinstance(item, str):
            yield item
        else:
            yield from leaf_ids(item)


def header_of(results: Sequence[Any]) -> list[Any]:
    """Return the ids of Celery's result objects, nested as they are."""
    return [
        header_of(result.results) if getattr(result, "results", None) is not None else result.id
        for result in results
    ]


def pack(header: Header) -> str:
    """Return `header` as text, which :func:`.checked.header_in` reads."""
    return json.dumps(header, separators=(",", ":"))


def pack_data(app: Celery, data: Any) -> bytes:
    """Return signatures as bytes, in the app's task serializer.

    Raises:
        kombu.exceptions.EncodeError: They cannot be serialized; neither can their messages.
    """
    *kind, data = serialization.dumps(data, app.conf.task_serializer)  # type: ignore[no-untyped-call]
    packed: bytes = json.dumps(kind).encode() + b"\n" + ensure_bytes(data)  # type: ignore[no-untyped-call]
    return packed


def unpack_data(app: Celery, packed: bytes) -> Any:
    """Return the data that `pack_data` made `packed` of.

    Raises:
        kombu.exceptions.ContentDisallowed: The app does not accept its serializer.
    """
    kind, _, data = bytes(packed).partition(b"\n")
    content_type, encoding = json.loads(kind)
    accept = _accepted(tuple(app.conf.accept_content))
    return serialization.loads(data, content_type, encoding, accept=accept)  # type: ignore[no-untyped-call]


@cache
def _accepted(content: tuple[str, ...]) -> Any:
    return serialization.prepare_accept_content(content)  # type: ignore[no-untyped-call]


def joined(header: Header, added: Header) -> Header:
    """Join the members; what is there already came with an attempt whose answer was lost."""
    return [*header, *(member for member in added if member not in header)]
