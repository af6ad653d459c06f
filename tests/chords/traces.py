"""What a chord leaves behind: keys on Redis, rows and pollers on SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from chordguard.ledger.tables import DEFAULT_NAMES
from tests.harness import UNLOCK, WITHOUT_LEDGER, Cluster


def traces(cluster: Cluster, *group_ids: str) -> list[str]:
    """Return what there is of chords that should be gone.

    The mark that one is done, and what is kept of how it ended, are no traces.
    """
    find = {"redis": _keys, **dict.fromkeys(WITHOUT_LEDGER, _counters)}.get(
        cluster.stack.backend, _rows
    )
    return [trace for group_id in group_ids for trace in find(cluster, group_id)]


def _counters(cluster: Cluster, group_id: str) -> list[str]:
    """Return what a key-value store keeps of a chord that Celery counts, and its pollers."""
    backend = cluster.app.backend
    keys = (backend.get_key_for_group(group_id), backend.get_key_for_chord(group_id))
    return [str(key) for key in keys if backend.get(key)] + _pollers(cluster, group_id)


def _keys(cluster: Cluster, group_id: str) -> list[str]:
    client = cluster.app.backend.client
    keys = [key.decode() for key in client.scan_iter(f"{cluster.stack.name}:*{group_id}*")]
    due = list(client.scan_iter(f"{cluster.stack.name}:*.due"))
    keys += ["due" for key in due if client.zscore(key, group_id) is not None]
    return [key for key in keys if not key.endswith((".c", ".chordguard-end"))]


def _rows(cluster: Cluster, group_id: str) -> list[str]:
    engine = sa.create_engine(cluster.stack.database_url)
    found: list[str] = []
    with engine.connect() as connection:
        for name, table in DEFAULT_NAMES.items():
            if name == "chord_end":
                continue
            column = "id" if table == "chordguard_chord" else "chord_id"
            if sa.inspect(engine).has_table(table):
                query = sa.text(f"SELECT count(*) FROM {table} WHERE {column} = :id")
                rows: Any = connection.execute(query, {"id": group_id}).scalar()
                found += [table] * rows
    engine.dispose()
    return found + _pollers(cluster, group_id)


def _pollers(cluster: Cluster, group_id: str) -> list[str]:
    """Return the pollers of a chord that some worker has and has not been told to drop."""
    inspect = cluster.app.control.inspect(destination=[cluster.worker.hostname], timeout=2)
    revoked = (inspect.revoked() or {}).get(cluster.worker.hostname, ())
    found = []
    for state in ("active", "reserved", "scheduled"):
        for entry in (getattr(inspect, state)() or {}).get(cluster.worker.hostname, ()):
            request = entry.get("request", entry)
            is_poller = request["name"] == UNLOCK and request["args"][0] == group_id
            if is_poller and request["id"] not in revoked:
                found.append(f"poller {request['id']}")
    return found
