"""Chords on a Redis backend: what the ledger costs in throughput, memory and round trips."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import chord, current_app
from celery.signals import worker_process_init
from tests.harness import wait_until
from tests.tasks import append

from benchmarks.lanes import (
    CountedConnection,
    canvas,
    count_round_trips,
    fresh_producer,
    run_many,
    timed,
)

if TYPE_CHECKING:
    from tests.harness import Cluster, Clusters

Lines = "Iterator[tuple[str, bool]]"

#: The settings of those that take turns; the first is what the others are compared with.
WATCHED: dict[str, dict[str, Any]] = {
    "stock": {},
    "watched every 30 s": {"chord_watchdog_interval": 30},
    "watched every 1 s": {"chord_watchdog_interval": 1},
}
#: Members of the header, and how many such chords run at once in one round.
SIZES = {10: 50, 100: 8, 1000: 1}
ROUNDS = 15

#: Entries of an index of which one entry's share is taken.
ENTRIES = 10_000

#: The setting that names the file in which each part notes its round trips.
NOTES = "benchmarks_round_trips"
#: Members of the chords whose round trips are counted, and how many such chords.
MEMBERS, CHORDS = 10, 10


def throughput(clusters: Clusters) -> Lines:
    """Members a second with ledger and watchdog: at least 0.95 of stock."""
    sides = {
        name: clusters("redis", patched=name != "stock", settings=settings)
        for name, settings in WATCHED.items()
    }
    for cluster in sides.values():
        with fresh_producer(cluster) as producer:
            run_many(producer, 20, 5)
    names = list(sides)
    for size, count in SIZES.items():
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(ROUNDS):
            # Who comes first changes, since the first one finds other caches.
            first = number % len(names)
            for name in names[first:] + names[:first]:
                with fresh_producer(sides[name]) as producer:
                    seconds[name].append(timed(partial(run_many, producer, size, count)))
        rates = {name: size * count / statistics.median(seconds[name]) for name in names}
        for name in names[1:]:
            # Of runs that follow each other: the machine is not as fast all the time.
            pairs = zip(seconds["stock"], seconds[name], strict=True)
            ratio = statistics.median(stock / own for stock, own in pairs)
            yield (
                (
                    f"N = {size:4}: stock {rates['stock']:6.1f} members/s, "
                    f"{name} {rates[name]:6.1f}, ratio {ratio:.3f} (bar 0.95)"
                ),
                ratio >= 0.95,
            )


def memory(clusters: Clusters) -> Lines:
    """Bytes of a live chord on top of stock's: under 1 KiB and 100 bytes a member."""
    halves = {half: clusters("redis", patched=half == "patched") for half in ("stock", "patched")}
    share = share_of_index(halves["patched"])
    for name, divisor in (("none", None), ("half", 2)):
        base = None
        for size in (1, 10, 100, 1000):
            done = size // divisor if divisor else 0
            stock, patched = (live_chord(cluster, size, done) for cluster in halves.values())
            extra = patched - stock + share
            base = extra if base is None else base
            each = f", {(extra - base) / size:5.1f} a member" if size > 1 else ""
            yield (
                (
                    f"{name} done, N = {size:4}: {extra:7.0f} bytes on top of {stock:7}{each} "
                    f"(bar {1024 + 100 * size})"
                ),
                extra < 1024 + 100 * size,
            )
    yield f"of them {share:.0f} bytes in the index of what is due, if there are {ENTRIES}", True


def live_chord(cluster: Cluster, size: int, done: int) -> int:
    """Return the bytes of a chord's keys while all but `done` members wait in another queue.

    From 5.7 on stock keeps the parts that it has seen, too: there they are not on top of it.
    """
    cluster.app.set_current()
    echo = cluster.tasks.echo.s(1)
    later = echo.clone().set(queue=f"{cluster.stack.name}-later")
    header = [echo.clone() for _ in range(done)] + [later.clone() for _ in range(size - done)]
    group_id = chord(header, cluster.tasks.tsum.s(), app=cluster.app).apply_async().parent.id
    backend = cluster.app.backend
    parts = backend.get_key_for_group(group_id, ".j")
    wait_until(lambda: backend.client.zcard(parts) == done, 60, "parts")
    suffixes = ("", ".j", ".t", ".s", ".d", ".c", ".chordguard")
    keys = [backend.get_key_for_group(group_id, suffix) for suffix in suffixes]
    return sum(backend.client.memory_usage(key, samples=0) or 0 for key in keys)


def share_of_index(cluster: Cluster) -> float:
    """Return the bytes that each of many live chords has in the index of what is due."""
    backend = cluster.app.backend
    key = backend.get_key_for_group("benchmark", ".due")
    backend.client.zadd(key, {f"{number:036}": 1e9 + number / 7 for number in range(ENTRIES)})
    return backend.client.memory_usage(key, samples=0) / ENTRIES


def round_trips(clusters: Clusters) -> Lines:
    """Round trips of a start (one more than stock), a part and an end (as many as stock)."""
    allowed = {"start": 1, "part": 0, "end": 0}
    with tempfile.TemporaryDirectory(prefix="chordguard-bench-") as folder:
        counts = {}
        for half in ("stock", "patched"):
            notes = Path(folder) / half
            settings = {"imports": [__name__], NOTES: str(notes)}
            cluster = clusters("redis", patched=half == "patched", settings=settings)
            count_round_trips(cluster.app.backend)
            # Connections are opened, scripts are loaded.
            noted(cluster, notes)
            counts[half] = noted(cluster, notes)
    for kind, more in allowed.items():
        stock, patched = counts["stock"][kind], counts["patched"][kind]
        yield (
            f"{kind:5}: stock {stock:5.2f}, patched {patched:5.2f} (bar: {more} more)",
            patched <= stock + more,
        )


def noted(cluster: Cluster, notes: Path) -> dict[str, float]:
    """Run chords one by one; return the mean round trips of a start, a part and an end.

    A start has those of Celery's subscriptions to the results, too. An end is what the last part
    of a chord needs on top of being a part.
    """
    notes.write_text("")
    starts = []
    for number in range(1, CHORDS + 1):
        before = CountedConnection.sent
        canvas(cluster, MEMBERS).apply_async()
        starts.append(CountedConnection.sent - before)
        returned = number * MEMBERS
        wait_until(lambda: len(notes.read_text().splitlines()) >= returned, 30, "parts")  # noqa: B023
    parts = sorted(map(int, notes.read_text().splitlines()))
    part = statistics.mean(parts[:-CHORDS])
    end = statistics.mean(parts[-CHORDS:]) - part
    return {"start": statistics.mean(starts), "part": part, "end": end}


@worker_process_init.connect
def note_round_trips(**_: Any) -> None:
    """Have each part that this process of a worker returns note how many round trips it needs."""
    notes = current_app.conf.get(NOTES)
    if notes is None:
        return
    backend = current_app.backend
    count_round_trips(backend)
    return_part = backend.on_chord_part_return

    def return_and_note(*args: Any, **kwargs: Any) -> Any:
        before = CountedConnection.sent
        try:
            return return_part(*args, **kwargs)
        finally:
            append(notes, str(CountedConnection.sent - before))

    backend.on_chord_part_return = return_and_note
