"""Run the benchmarks: ``python -m benchmarks [NAME ...]``, all of them without a name.

Stock and patched workers run side by side and take turns, so that a machine that gets slower
does so for both. Times are medians, ratios are of medians. Servers are found or started as
for the tests.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from celery import chord
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tests.app_factory import make_app
from tests.harness import Cluster, Clusters
from tests.servers import Servers

from chordguard import install_patches, uninstall_patches
from chordguard._patch import is_patched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Members of the header, and how many such chords run at once in one round.
SIZES = {1: 200, 10: 100, 100: 12, 1000: 1}
ROUNDS = 9
#: Seconds between two looks of somebody who does not wait with `get`.
GLANCE = 0.02


def main(names: list[str]) -> int:
    chosen = {name: BENCHMARKS[name] for name in names or BENCHMARKS}
    missed = 0
    with contextlib.closing(Servers()) as servers:
        for name, benchmark in chosen.items():
            with contextlib.closing(Clusters(servers)) as clusters:
                print(f"\n{name}: {benchmark.__doc__}", flush=True)
                for line, is_met in benchmark(clusters):
                    missed += not is_met
                    print(f"  {line}{'' if is_met else '   MISSED'}", flush=True)
    return 1 if missed else 0


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


def overhead(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """Strict chords that end well: chords a second, at least 0.97 of stock."""
    for backend in ("redis", "postgresql"):
        both = pair(clusters, backend)
        for size, count in SIZES.items():
            seconds: dict[str, list[float]] = {"stock": [], "patched": []}
            for number in range(ROUNDS):
                # Who comes first changes, since the first one finds other caches.
                for half in sorted(both, reverse=number % 2 == 0):
                    cluster = both[half]
                    cluster.app.set_current()
                    seconds[half].append(timed(lambda: run_many(cluster, size, count)))  # noqa: B023
            stock, patched = (count / statistics.median(seconds[half]) for half in seconds)
            yield (
                (
                    f"{backend:10} N = {size:4}: stock {stock:7.2f} chords/s, "
                    f"patched {patched:7.2f}, "
                    f"ratio {patched / stock:.3f} (bar 0.97)"
                ),
                patched / stock >= 0.97,
            )


def run_many(cluster: Cluster, size: int, count: int) -> None:
    until_done(cluster, [canvas(cluster, size).apply_async() for _ in range(count)])


def waiting(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """Wait with `get()` for a chord of 4,000 on Redis: at most 1.15 times as long as without."""
    size, rounds = 4000, 5
    both = pair(clusters, "redis")
    ratios = {}
    for half, cluster in both.items():
        alone, waited = [], []
        for _ in range(rounds if half == "patched" else 2):
            with fresh_producer(cluster) as producer:
                alone.append(timed(lambda: run_many(producer, size, 1)))
            with fresh_producer(cluster) as producer:
                waited.append(timed(lambda: canvas(producer, size).apply_async().get(timeout=600)))
        ratios[half] = statistics.median(waited) / statistics.median(alone)
        yield (
            (
                f"{half:8} nobody waits {statistics.median(alone):6.2f} s, get() "
                f"{statistics.median(waited):6.2f} s, ratio {ratios[half]:.2f}"
            ),
            half == "stock" or ratios[half] <= 1.15,
        )


def sql_waiting(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """1,000 members on PostgreSQL: get() of a finished chord < 0.5 s, waiting < 200 statements."""
    for half, cluster in pair(clusters, "postgresql").items():
        cluster.app.set_current()
        result = canvas(cluster, 1000).apply_async()
        with statements() as during:
            result.get(timeout=600)
        finished = canvas(cluster, 1000).apply_async()
        until_done(cluster, [finished])
        with statements() as after:
            seconds = timed(lambda: finished.get(timeout=60))  # noqa: B023
        yield (
            (
                f"{half:8} waiting: {sum(during):6} statements (with BEGIN, COMMIT, ROLLBACK); "
                f"get() of a finished chord: {seconds:6.3f} s, {sum(after)} statements"
            ),
            half == "stock" or (seconds < 0.5 and sum(during) < 200),
        )


@contextlib.contextmanager
def statements() -> Iterator[list[int]]:
    """Count the statements that this process sends to any database."""
    sent: list[int] = []

    def count(*_: Any) -> None:
        sent.append(1)

    names = ("before_cursor_execute", "begin", "commit", "rollback")
    for name in names:
        event.listen(Engine, name, count)
    try:
        yield sent
    finally:
        for name in names:
            event.remove(Engine, name, count)


def import_time(_: Clusters) -> Iterator[tuple[str, bool]]:
    """`import chordguard` adds under 20 ms to `import celery`."""

    def milliseconds(code: str) -> float:
        return 1000 * timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    def added(base: str, code: str) -> float:
        pairs = [(milliseconds(base), milliseconds(f"{base}; {code}")) for _ in range(15)]
        return statistics.median(longer - shorter for shorter, longer in pairs)

    plain = added("import celery", "import chordguard")
    yield f"import chordguard: {plain:.1f} ms on top of import celery (bar 20)", plain < 20
    used = added("from celery import Celery", "from chordguard import install_patches")
    yield f"install_patches: {used:.1f} ms on top of from celery import Celery", True


def per_part(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """Measure what the wrappers add to each returned part of a strict chord."""
    cluster = clusters("redis", patched=True)
    backend = cluster.app.backend
    calls = 20_000
    request = type("Request", (), {"id": None, "group": None, "group_index": None, "chord": None})

    def run() -> None:
        for _ in range(calls):
            backend.on_chord_part_return(request, "SUCCESS", None)

    install_patches(cluster.app)
    patched = timed(run)
    uninstall_patches(cluster.app)
    stock = timed(run)
    install_patches(cluster.app)
    cost = (patched - stock) / calls * 1e6
    yield f"{cost:.1f} microseconds for each returned part", True


BENCHMARKS: dict[str, Callable[[Clusters], Iterator[tuple[str, bool]]]] = {
    "import_time": import_time,
    "per_part": per_part,
    "overhead": overhead,
    "waiting": waiting,
    "sql_waiting": sql_waiting,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
