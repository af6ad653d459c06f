"""What a result backend has encoded, decoded many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import OUTSIDE
from . import backends

__all__ = ("decoded",)

#: How many payloads are decoded at once.
CHUNK = 500


def decoded(backend: Any, payloads: deque[Any]) -> Iterator[Any]:
    """Yield what a backend's encoded `payloads` say, which are taken away as they are decoded.

    One that cannot be decoded is left out.
    """
    while payloads:
        portion = [payloads.popleft() for _ in range(min(CHUNK, len(payloads)))]
        yield from _decoded_as_one(backend, portion) or _decoded_each(backend, portion)


def _decoded_as_one(backend: Any, payloads: list[Any]) -> Sequence[Any]:
    """Return what JSON arrays say, decoded as one array of them; nothing where that cannot be.

    Celery and kombu take longer to find out how to decode a payload than to decode it.
    """
    if backend.content_type != "application/json" or not backends.decodes_as_celery(backend):
        return ()
    if not all(isinstance(each, bytes) and each[:1] + each[-1:] == b"[]" for each in payloads):
        return ()
    try:
        values: Sequence[Any] = backend.decode(b"[%b]" % b",".join(payloads))
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - whatever was stored
        return ()
    return values if len(values) == len(payloads) else ()


def _decoded_each(backend: Any, payloads: Iterable[Any]) -> Iterator[Any]:
    for payload in payloads:
        try:
            yield backend.decode(payload)
        except OUTSIDE:
            raise
        except Exception:  # noqa: BLE001, S112 - whatever was stored
            continue
