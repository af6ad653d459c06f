"""Chords without a ledger: started without the patches, or before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.utils.encoding import bytes_to_str

from ..lifecycle import safety_net
from ..recovery.survey import Survey
from ..upstream import backends
from ..upstream.hooks import UNLOCK

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Stranger", "strangers_of")

#: Seconds for which workers are waited for.
ASKING_SECONDS = 1.0

#: How many keys one SCAN looks at.
SCANNED = 1000


@dataclass(frozen=True)
class Stranger:
    """A live chord that no ledger knows.

    Attributes:
        group_id: The id of its header.
        where: What is there of it.
        done: How many members returned; None where that is not known.
        size: How many it has, likewise.
    """

    group_id: str
    where: str
    done: int | None = None
    size: int | None = None

    @property
    def progress(self) -> str:
        """Say how many members are done."""
        return (
            "-" if self.done is None else f"{self.done}/{'?' if self.size is None else self.size}"
        )

    def facts(self) -> dict[str, Any]:
        """Return what JSON tells of it."""
        return {
            "group_id": self.group_id,
            "where": self.where,
            "done": self.done,
            "size": self.size,
        }


def strangers_of(app: Celery, found: Survey) -> list[Stranger]:
    """Return the live chords that are not among those `found` in the ledger.

    On Redis all keys are scanned for the counters that Celery keeps. Elsewhere the workers are
    asked which `celery.chord_unlock` they have scheduled; one that looks at its chord just then is
    not among them.
    """
    known = {chord.id for chord in found.chords}
    find = _with_keys if backends.is_redis(app.backend) else _with_pollers
    return [stranger for stranger in find(app) if stranger.group_id not in known]


def _with_keys(app: Celery) -> Iterator[Stranger]:
    backend = app.backend
    start, _, _ = bytes_to_str(backend.get_key_for_group("*")).partition("*")  # type: ignore[no-untyped-call]
    client = backend.client
    ids = {
        key[len(start) : -2]
        for found in client.scan_iter(f"{_escaped(start)}*.[js]", count=SCANNED)
        if (key := bytes_to_str(found))  # type: ignore[no-untyped-call]
    }
    for group_id in sorted(ids):
        j, s, t, c, ours = (
            backend.get_key_for_group(group_id, end)
            for end in (".j", ".s", ".t", ".c", ".chordguard")
        )
        if client.exists(ours) or client.get(c) == b"done":
            continue
        done = (client.zcard if backend._chord_zset else client.llen)(j)
        size = client.get(s)
        total = None if size is None else int(size) + int(client.get(t) or 0)
        yield Stranger(group_id, "keys in Redis", done, total)


def _with_pollers(app: Celery) -> Iterator[Stranger]:
    inspect = app.control.inspect(timeout=ASKING_SECONDS)
    for worker, entries in (inspect.scheduled() or {}).items():
        for entry in entries:
            request = entry["request"]
            args = request["args"]
            if request["name"] != UNLOCK or not isinstance(args, (list, tuple)) or not args:
                continue
            if request["id"] != safety_net.unlock_id(args[0]):
                yield Stranger(args[0], f"{UNLOCK} is scheduled on {worker}")


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in text)
