"""Chords on SQL backends: how soon bodies start, what members cost, what waiting costs."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import chord, group
from tests.harness import wait_until

from benchmarks.lanes import statements, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Cluster, Clusters

Lines = "Iterator[tuple[str, bool]]"

HALVES = ("stock", "patched")
#: Stock's own, which the tests shorten.
SETTINGS = {"result_chord_retry_interval": 1.0}
#: Seconds in which the members of stragglers' chords are waited for, by half.
WINDOWS = {"stock": 10.0, "patched": 60.0}


class Bench:
    """A cluster, and a file in which bodies note when they start."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.tasks = cluster.tasks
        self.folder = folder
        cluster.app.set_current()

    def record(self) -> Path:
        path = self.folder / f"record-{time.monotonic_ns()}"
        path.touch()
        return path

    def start(self, size: int, record: Path) -> Any:
        header = [self.tasks.echo.s(1) for _ in range(size)]
        return chord(header, self.tasks.stamp.s(str(record)), app=self.cluster.app).apply_async()

    def run(self, size: int, count: int = 1, deadline: float = 600) -> Path:
        """Run so many chords at once, looking only at the file of their bodies."""
        record = self.record()
        for _ in range(count):
            self.start(size, record)
        wait_until(lambda: len(lines(record)) >= count, deadline, f"{count} bodies")
        return record

    def query(self, statement: str, **values: Any) -> list[Any]:
        engine = sa.create_engine(self.cluster.stack.database_url)
        with engine.connect() as connection:
            rows = list(connection.execute(sa.text(statement), values))
        engine.dispose()
        return rows


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@contextlib.contextmanager
def benches(
    clusters: Clusters,
    backend: str = "postgresql",
    halves: Any = HALVES,
    more_settings: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[dict[str, Bench]]:
    """Yield a stock and a patched cluster, both warm."""
    with tempfile.TemporaryDirectory(prefix="chordguard-bench-") as folder:
        both = {
            half: Bench(
                clusters(
                    backend,
                    patched=half == "patched",
                    settings={**SETTINGS, **(more_settings or {})},
                    **options,
                ),
                Path(folder),
            )
            for half in halves
        }
        for bench in both.values():
            bench.cluster.app.set_current()
            bench.run(20, 5)
        yield both


def latency(clusters: Clusters) -> Lines:
    """From the last stored member to the body's start: median < 30 ms, p99 < 150 ms."""
    with benches(clusters) as both:
        for half, bench in both.items():
            bench.cluster.app.set_current()
            delays = []
            for _ in range(300 if half == "patched" else 40):
                record = bench.record()
                result = bench.start(10, record)
                wait_until(lambda: lines(record), 30, "body")  # noqa: B023
                rows = bench.query(
                    "SELECT max(date_done) FROM celery_taskmeta WHERE task_id IN "
                    f"({', '.join(repr(member.id) for member in result.parent.results)})"
                )
                stored = rows[0][0].replace(tzinfo=_utc()).timestamp()
                delays.append(float(lines(record)[0]) - stored)
            median = 1000 * statistics.median(delays)
            last = 1000 * statistics.quantiles(delays, n=100)[98]
            yield (
                (
                    f"{half:8} median {median:7.1f} ms, 99th percentile {last:7.1f} ms "
                    f"({len(delays)} chords of 10, PostgreSQL)"
                ),
                half == "stock" or (median < 30 and last < 150),
            )


def _utc() -> Any:
    from datetime import timezone

    return timezone.utc


def statements_per_member(clusters: Clusters) -> Lines:
    """Count SQL statements, with BEGIN and COMMIT: at most 5 a member over storing results."""
    with tempfile.TemporaryDirectory(prefix="chordguard-bench-") as folder:
        counts = {half: Path(folder) / half for half in HALVES}
        for half, path in counts.items():
            path.touch()
            with benches(clusters, halves=[half], statements=str(path)) as both:
                bench = both[half]
                stored = counted(bench, path, lambda bench: plain_group(bench, 200))
                # The producer asked only for the benchmark.
                per_result = (total(stored) - stored["producer"]) / 200
                for size in (10, 100, 1000):
                    spent = counted(bench, path, lambda bench: bench.run(size))  # noqa: B023
                    extra = total(spent) / size - per_result
                    pings = spent["P"] / size - stored["P"] / 200
                    yield (
                        (
                            f"{half:8} N = {size:4}: {extra:6.2f} a member on top of "
                            f"{per_result:.2f} to store its result (and {pings:.2f} pings); "
                            f"{dict(spent)}"
                        ),
                        half == "stock" or extra <= 5,
                    )
            unlocks = bench.cluster.worker.log_text().count("Task celery.chord_unlock")
            yield f"{half:8} {unlocks} lines about celery.chord_unlock in the worker's log", True


def plain_group(bench: Bench, size: int) -> None:
    result = group([bench.tasks.echo.s(1) for _ in range(size)], app=bench.cluster.app)()
    ids = [member.id for member in result.results]
    wait_until(
        lambda: (
            bench.query(
                "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS' AND task_id IN "
                f"({', '.join(map(repr, ids))})"
            )[0][0]
            == size
        ),
        60,
        "results",
    )


def counted(bench: Bench, path: Path, run: Callable[[Bench], Any]) -> Counter[str]:
    """Return what producer and workers sent during `run`, by kind: see `tests.worker`."""
    before = path.stat().st_size
    with statements() as sent:
        run(bench)
    # The last body ends, the last rows are removed.
    time.sleep(1)
    with path.open() as file:
        file.seek(before)
        spent = Counter(file.read())
    spent["producer"] = len(sent)
    return spent


def total(spent: Counter[str]) -> int:
    return sum(count for kind, count in spent.items() if kind != "P")


def throughput(clusters: Clusters) -> Lines:
    """No-op members a second: N = 1,000 at least 1.15 times stock, N = 10,000 1.5 times."""
    with benches(clusters) as both:
        for size, rounds, bar in ((1000, 5, 1.15), (10_000, 3, 1.5)):
            seconds: dict[str, list[float]] = {half: [] for half in HALVES}
            for number in range(rounds):
                for half in sorted(both, reverse=number % 2 == 0):
                    bench = both[half]
                    bench.cluster.app.set_current()
                    seconds[half].append(timed(lambda: bench.run(size)))  # noqa: B023
            stock, patched = (size / statistics.median(seconds[half]) for half in HALVES)
            yield (
                (
                    f"N = {size:6}: stock {stock:6.1f} members/s, patched {patched:6.1f}, ratio "
                    f"{patched / stock:.2f} (bar {bar}); PostgreSQL, two processes"
                ),
                patched / stock >= bar,
            )


def stragglers(clusters: Clusters) -> Lines:
    """30 chords of 200 wait for one member each: others start < 50 ms, < 5 statements/s."""
    with tempfile.TemporaryDirectory(prefix="chordguard-bench-") as folder:
        for half in HALVES:
            path = Path(folder) / half
            path.touch()
            with benches(clusters, halves=[half], statements=str(path)) as both:
                bench = both[half]
                done = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"
                already = bench.query(done)[0][0]
                for _ in range(30):
                    late = bench.tasks.echo.s(1).set(queue=f"{bench.cluster.stack.name}-later")
                    header = [*(bench.tasks.echo.s(1) for _ in range(199)), late]
                    chord(header, bench.tasks.tsum.s(), app=bench.cluster.app).apply_async()
                members = already + 30 * 199
                wait_until(lambda: bench.query(done)[0][0] >= members, 300, "members")  # noqa: B023
                before, started = path.stat().st_size, time.monotonic()
                delays = []
                while time.monotonic() < started + WINDOWS[half]:
                    record = bench.record()
                    sent = time.time()
                    bench.tasks.stamp.apply_async(([], str(record)), ignore_result=True)
                    wait_until(lambda: lines(record), 60, "task")  # noqa: B023
                    delays.append(float(lines(record)[0]) - sent)
                    time.sleep(0.5)
                rate = (path.stat().st_size - before) / (time.monotonic() - started)
                worst, median = 1000 * max(delays), 1000 * statistics.median(delays)
                yield (
                    (
                        f"{half:8} an ordinary task starts after {median:.0f} ms (median), "
                        f"{worst:.0f} ms (worst of {len(delays)}); {rate:.1f} statements/s"
                    ),
                    half == "stock" or (median < 50 and rate < 5),
                )


def crowd(clusters: Clusters, twice: bool = False) -> Lines:
    """200 chords of 10 at once, four worker processes: each body exactly once, no deadlock."""
    for backend in ("sqlite", "postgresql", "mysql"):
        with benches(clusters, backend, halves=["patched"], concurrency=4) as both:
            bench = both["patched"]
            logged = len(bench.cluster.worker.log_text().encode())
            with delivered_twice(bench.cluster) if twice else contextlib.nullcontext():
                started = time.perf_counter()
                record = bench.run(10, 200)
                seconds = time.perf_counter() - started
            wait_until(
                lambda: bench.query("SELECT count(*) FROM chordguard_chord")[0][0] == 0,  # noqa: B023
                30,
                "ledger",
            )
            rows = bench.query("SELECT count(*) FROM chordguard_chord_member")[0][0]
            text = bench.cluster.worker.log_text(logged)
            trouble = sum(text.lower().count(word) for word in ("error", "deadlock", "failed op"))
            bodies = len(lines(record))
            yield (
                (
                    f"{backend:10} {bodies} bodies of 200 in {seconds:.1f} s, {trouble} errors or "
                    f"retries in the log, {rows} rows left"
                ),
                bodies == 200 and trouble == 0 and rows == 0,
            )


def duplicates(clusters: Clusters) -> Lines:
    """Run the crowd with every header message delivered twice: each body exactly once."""
    yield from crowd(clusters, twice=True)


@contextlib.contextmanager
def delivered_twice(cluster: Cluster, name: str = "tests.echo") -> Iterator[None]:
    """Have each message of the task `name` published twice."""
    amqp = cluster.app.amqp
    send = amqp.send_task_message

    def send_twice(producer: Any, task: str, *args: Any, **kwargs: Any) -> Any:
        if task == name:
            send(producer, task, *args, **kwargs)
        return send(producer, task, *args, **kwargs)

    amqp.__dict__["send_task_message"] = send_twice
    try:
        yield
    finally:
        amqp.__dict__["send_task_message"] = send
