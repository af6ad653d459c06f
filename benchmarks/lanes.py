"""What the benchmarks share: stock and patched side by side, chords of no-ops, what is counted.

SQL statements are counted where SQLAlchemy sends them, round trips to Redis where its client does.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import redis
from celery import chord
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tests.app_factory import make_app
from tests.harness import Cluster, Clusters

from chordguard.engine.patch import is_patched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two looks of somebody who does not wait with `get`.
GLANCE = 0.02


def pair(clusters: Clusters, backend: str) -> dict[str, Cluster]:
    """Return a stock and a patched cluster on the backend, both warm."""
    both = {
        half: clusters(
            backend, patched=half == "patched", settings={"result_chord_retry_interval": 1.0}
        )
        for half in ("stock", "patched")
    }
    for cluster in both.values():
        until_done(cluster, [canvas(cluster, 20).apply_async() for _ in range(5)])
    return both


def canvas(cluster: Cluster, size: int) -> Any:
    t = cluster.tasks
    return chord([t.echo.s(1) for _ in range(size)], t.tsum.s(), app=cluster.app)


@contextlib.contextmanager
def fresh_producer(cluster: Cluster) -> Iterator[Cluster]:
    """Give the cluster's worker a producer that nothing was announced to before."""
    app = make_app(cluster.config, patched=is_patched(cluster.app))
    app.set_current()
    with contextlib.closing(app):
        yield Cluster(cluster.stack, app, cluster.worker, cluster.config)


def until_done(cluster: Cluster, results: list[Any]) -> None:
    """Look at each result until it is there, without waiting for it as `get` does."""
    backend = cluster.app.backend
    for result in results:
        while backend.get_state(result.id) not in backend.READY_STATES:
            time.sleep(GLANCE)


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def run_many(cluster: Cluster, size: int, count: int) -> None:
    until_done(cluster, [canvas(cluster, size).apply_async() for _ in range(count)])


#: All that SQLAlchemy tells of.
EVENTS = ("before_cursor_execute", "begin", "commit", "rollback")


@contextlib.contextmanager
def statements(*names: str) -> Iterator[list[int]]:
    """Count the statements that this process sends to any database; `names` as in `EVENTS`."""
    sent: list[int] = []

    def count(*_: Any) -> None:
        sent.append(1)

    names = names or EVENTS
    for name in names:
        event.listen(Engine, name, count)
    try:
        yield sent
    finally:
        for name in names:
            event.remove(Engine, name, count)


class CountedConnection(redis.Connection):
    """Counts what this process sends: a command, a script, or a pipeline as a whole."""

    sent = 0

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        CountedConnection.sent += 1
        super().send_packed_command(*args, **kwargs)


def count_round_trips(backend: Any) -> None:
    """Have what a Redis result backend sends from now on counted."""
    backend.connparams["connection_class"] = CountedConnection
    vars(backend).pop("client", None)
