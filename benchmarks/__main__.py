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
from typing import TYPE_CHECKING

from tests.harness import Clusters
from tests.servers import Servers

from benchmarks import following, redis, scale, sql, survey, watchdog
from benchmarks.lanes import canvas, fresh_producer, pair, run_many, statements, timed, until_done
from chordguard import install_patches, uninstall_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Members of the header, and how many such chords run at once in one round.
SIZES = {1: 200, 10: 100, 100: 12, 1000: 1}
ROUNDS = 9


def main(names: list[str]) -> int:
    chosen = {name: BENCHMARKS[name] for name in names or BENCHMARKS}
    missed = 0
    with contextlib.closing(Servers()) as servers:
        for name, benchmark in chosen.items():
            with contextlib.closing(Clusters(servers, has_live=False)) as clusters:
                print(f"\n{name}: {benchmark.__doc__}", flush=True)
                for line, is_met in benchmark(clusters):
                    missed += not is_met
                    print(f"  {line}{'' if is_met else '   MISSED'}", flush=True)
    return 1 if missed else 0


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
    "how_far": following.how_far,
    "awaiting": following.awaiting,
    "redis_throughput": redis.throughput,
    "redis_memory": redis.memory,
    "redis_round_trips": redis.round_trips,
    "watchdog_idle": watchdog.idle,
    "sql_latency": sql.latency,
    "sql_statements": sql.statements_per_member,
    "sql_throughput": sql.throughput,
    "sql_stragglers": sql.stragglers,
    "sql_crowd": sql.crowd,
    "sql_duplicates": sql.duplicates,
    "scale_counting": scale.counting,
    "scale_slow_flushes": scale.slow_flushes,
    "scale_slow_mariadb": scale.slow_mariadb,
    "scale_large_redis": scale.large_redis,
    "scale_starts": scale.starts,
    "scale_endings": scale.endings,
    "survey": survey.survey,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
