"""The watchdog of a worker in which all is well: what its looks cost."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import Pool

from benchmarks.lanes import CountedConnection, count_round_trips, statements
from chordguard.ledger.access import ledger_of
from chordguard.recovery.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Cluster, Clusters

#: Live chords, none of which is due.
LIVE = 10_000
LOOKS = 300


def idle(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """Look while nothing is due: at most one query a look, under 1 ms of CPU time."""
    for backend in ("redis", "postgresql"):
        cluster = clusters(backend)
        if backend == "redis":
            count_round_trips(cluster.app.backend)
        for live in (0, LIVE):
            if live:
                FILL[backend](cluster, live)
            queries, connections, seconds = looked(cluster)
            cpu = 1000 * statistics.median(seconds)
            yield (
                (
                    f"{backend:10} {live:6} live chords: {queries:.2f} queries (bar 1) and "
                    f"{connections:.2f} new connections (bar 0), {cpu:.3f} ms of CPU time (bar 1)"
                ),
                queries <= 1 and not connections and cpu < 1,
            )


def looked(cluster: Cluster) -> tuple[float, float, list[float]]:
    """Return the queries and the new connections of a look, and the CPU time of each look.

    Not counted as queries are BEGIN and the like, and what a new connection asks its database.
    """
    watchdog = Watchdog(cluster.app)
    watchdog.look_at_due()
    connected: list[int] = []

    def connect(*_: Any) -> None:
        connected.append(1)

    event.listen(Pool, "connect", connect)
    before = CountedConnection.sent
    seconds = []
    with statements("before_cursor_execute") as sent:
        for _ in range(LOOKS):
            started = time.thread_time()
            watchdog.look_at_due()
            seconds.append(time.thread_time() - started)
    event.remove(Pool, "connect", connect)
    queries = CountedConnection.sent - before + len(sent)
    return queries / LOOKS, len(connected) / LOOKS, seconds


def fill_redis(cluster: Cluster, live: int) -> None:
    ledger = ledger_of(cluster.app.backend)
    for _ in range(live):
        ledger.open(str(uuid4()), ["member"], b"", time.time() + 3600, 600)


def fill_database(cluster: Cluster, live: int) -> None:
    """Add the rows at once, since the ledger has a connection for each."""
    ledger = ledger_of(cluster.app.backend)
    now = time.time()
    row = {"returned": 0, "created": now, "progressed": now, "due": now + 3600, "claimed_until": 0}
    engine = sa.create_engine(cluster.stack.database_url)
    with engine.begin() as connection:
        rows = [{"id": str(uuid4()), **row} for _ in range(live)]
        connection.execute(ledger.tables.chord.insert(), rows)
    engine.dispose()


FILL: dict[str, Callable[[Cluster, int], Any]] = {"redis": fill_redis, "postgresql": fill_database}
