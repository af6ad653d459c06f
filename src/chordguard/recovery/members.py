"""The members of one chord, as far as anybody knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery.utils.saferepr import saferepr

from ..failures import record_of
from ..ledger.model import Claim, Ledger
from ..ledger.packing import leaf_ids, unpack_data
from ..masking import masked
from ..upstream import backends
from ..upstream.results import StoredResult, chunks, read_metas, read_results, select
from .kinds import Diagnosis

__all__ = ("Member", "members_of")

#: So many characters of a result are shown.
SHOWN = 500


@dataclass(frozen=True)
class Member:
    """A task of a header.

    Attributes:
        id: Its id.
        state: That of its result; LOST: neither a result nor a place where it was seen.
        name: The name of the task; None where nobody says.
        worker: Where it ran or is; None where nobody says.
        time: When it was done (ISO 8601, UTC); None: it is not, or nobody says.
        result: Its result or error as text.
    """

    id: str
    state: str
    name: str | None = None
    worker: str | None = None
    time: str | None = None
    result: str | None = None

    def row(self) -> tuple[str, ...]:
        """Return its row in a table."""
        time = (self.time or "-").partition(".")[0]
        return self.id, self.state, self.name or "-", self.worker or "-", time

    def facts(self, *, is_verbose: bool) -> dict[str, Any]:
        """Return what JSON tells of it."""
        facts: dict[str, Any] = {
            "id": self.id,
            "state": self.state,
            "name": self.name,
            "worker": self.worker,
            "time": self.time,
        }
        if is_verbose:
            facts["result"] = self.result
        return facts


def members_of(ledger: Ledger, found: Diagnosis, ids: Sequence[str] | None = None) -> list[Member]:
    """Return the members of a chord in header order; none where they are not known.

    Names and workers of members that are done are known with ``result_extended = True``, names
    also with ``chord_store_signatures = True``.

    Arguments:
        ledger: Where the chord is counted.
        found: Its diagnosis.
        ids: Those of its members that are asked for; None: all.
    """
    if found.header is None or found.record is None:
        return []
    ids = list(leaf_ids(found.header)) if ids is None else ids
    # What members with `ignore_result=True` gave is with the ledger alone.
    _, stored = ledger.collect(Claim(found.group_id, "", ids))
    started = read_results(ledger.results, [id_ for id_ in ids if id_ not in stored])
    results = {**started, **stored}
    extra = _extra_of(ledger.results, ids)
    names = _names_of(ledger, found)
    return [_member(id_, results.get(id_), extra.get(id_, {}), names, found) for id_ in ids]


def _member(
    id_: str,
    result: StoredResult | None,
    extra: Mapping[str, Any],
    names: Mapping[str, str],
    found: Diagnosis,
) -> Member:
    place = found.evidence.get(id_)
    state = _state(result, place, id_ in found.missing)
    worker = extra.get("worker") or place
    name = extra.get("name") or names.get(id_)
    if result is None or not result.is_ready:
        return Member(id_, state, name, worker)
    text = record_of(result, None)["text"] if result.failed else saferepr(result.value, SHOWN)
    text = masked(text) if result.failed else text
    return Member(id_, state, name, worker, _iso(extra.get("date_done")), text[:SHOWN])


def _state(result: StoredResult | None, place: str | None, is_missing: bool) -> str:
    if result is not None and (result.is_ready or place is None):
        return result.state
    if place is not None:
        return "STARTED" if place.startswith("runs") else "PENDING"
    return "LOST" if is_missing else "PENDING"


def _extra_of(backend: Any, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what stored results say beside the result: date_done, name, worker."""
    if backends.is_redis(backend):
        return dict(read_metas(backend, ids))
    if backends.is_django(backend):
        return dict(_extra_from_django(backend, ids))
    return dict(_extra_from_database(backend, ids)) if backends.is_database(backend) else {}


def _extra_from_django(backend: Any, ids: Sequence[str]) -> Iterator[tuple[str, Any]]:
    from ..upstream import django

    columns = ("task_id", "date_done", "task_name", "worker")
    for chunk in chunks(ids):
        for task_id, date_done, name, worker in django.select_rows(backend, columns, chunk):
            yield task_id, {"date_done": date_done, "name": name, "worker": worker}


def _extra_from_database(backend: Any, ids: Sequence[str]) -> Iterator[tuple[str, Any]]:
    task = backend.task_cls
    names = [name for name in ("date_done", "name", "worker") if hasattr(task, name)]
    columns = [task.task_id, *(getattr(task, name) for name in names)]
    for chunk in chunks(ids):
        for task_id, *values in select(backend, columns, task.task_id.in_(chunk)):
            yield task_id, dict(zip(names, values, strict=True))


def _names_of(ledger: Ledger, found: Diagnosis) -> dict[str, str]:
    """Return the names of members whose signatures were kept."""
    packed = ledger.signatures(found.group_id)
    if packed is None or found.header is None:
        return {}
    names: dict[str, str] = {}
    with suppress(Exception):  # data from the network
        for data, item in zip(unpack_data(ledger.backend.app, packed), found.header, strict=False):
            if isinstance(item, str):
                names[item] = str(data.get("task"))
    return names


def _iso(value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return str(value) if value else None
