"""Large chords: how fast they start, and are counted on a database that takes its time to flush.

``commit_delay`` makes PostgreSQL wait before each flush and leaves group commit as it is; a binary
log with ``binlog_commit_wait_usec`` does that for MariaDB.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import chord
from celery.utils import uuid
from sqlalchemy.engine import make_url
from tests.app_factory import make_app
from tests.harness import Stack
from tests.servers import MySQL
from tests.tasks import named
from tests.unit.ledger.chords import app_on

from benchmarks.lanes import timed
from benchmarks.sql import HALVES, benches
from chordguard.ledger import counters
from chordguard.ledger.sql import DatabaseLedger

if TYPE_CHECKING:
    from tests.harness import Clusters

Lines = "Iterator[tuple[str, bool]]"

#: Connections that count at once, and how long (seconds).
CONNECTIONS = 32
SECONDS = 5.0
#: Processes of a worker.
PROCESSES = 16
#: Members of a chord, and how many such chords run for a median.
SIZES = {1000: 3, 10_000: 1}


def flushed_in(milliseconds: int) -> dict[str, Any]:
    """Return the settings with which PostgreSQL takes so long to flush a commit."""
    options = f"-c commit_delay={1000 * milliseconds} -c commit_siblings=0"
    return {"database_engine_options": {"connect_args": {"options": options}}}


class SlowMariaDB(MySQL):
    """MariaDB that takes 20 ms to flush a commit."""

    persistence = (
        "--log-bin --server-id=1 --sync-binlog=1 --binlog-commit-wait-usec=20000"
        " --binlog-commit-wait-count=100000"
    )


def counting(clusters: Clusters) -> Lines:
    """Count parts with 32 connections, 4 ms a flush: at least 10 times as fast as on one row."""
    server = clusters._found.get("postgresql")
    url = server.kind.create_database(server)
    engine = sa.create_engine(
        url,
        pool_size=CONNECTIONS,
        isolation_level="AUTOCOMMIT",
        connect_args={"options": "-c commit_delay=4000 -c commit_siblings=0"},
    )
    ledger = DatabaseLedger(app_on(f"db+{url}").backend)
    assert ledger.is_usable()
    try:
        rates = {size: counted_in_a_second(ledger, engine, size) for size in (0, 60_000)}
    finally:
        engine.dispose()
        server.kind.drop_database(server, url)
    for size, rate in rates.items():
        yield f"on {'counters' if size else 'one row':8}: {rate:7.0f} parts/s", True
    ratio = rates[60_000] / rates[0]
    yield f"ratio {ratio:.1f} (bar 10)", ratio >= 10


def counted_in_a_second(ledger: Any, engine: Any, size: int) -> float:
    """Return how many parts many connections count on one chord; one of size 0 has one row."""
    tables, group_id = ledger.tables, uuid()
    ledger.open(group_id, [str(number) for number in range(size)] or None, None, 0.0, None)
    number = counters.how_many(size)
    statement = tables.count_on_counter_in_one if number else tables.count_in_one
    values = {"chord": group_id, "payload": None, "failures": 0, "now": time.time()}
    ends = time.monotonic() + SECONDS

    def count() -> int:
        counted = 0
        with engine.connect() as connection:
            while time.monotonic() < ends:
                task = uuid()
                place = (
                    {"counter": counters.number_of(task, number)}
                    if number
                    else {"token": task, "until": 0.0}
                )
                connection.execute(statement, {**values, **place, "task": task})
                counted += 1
        return counted

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        counted = sum(f.result() for f in [pool.submit(count) for _ in range(CONNECTIONS)])
    return counted / SECONDS


def slow_flushes(clusters: Clusters) -> Lines:
    """PostgreSQL, 16 processes, no-op members a second: 20 ms a flush 1.0 of stock, 4 ms 1.2."""
    for milliseconds, bar in ((20, 1.0), (4, 1.2)):
        yield from members_per_second(clusters, "postgresql", flushed_in(milliseconds), bar)


def slow_mariadb(clusters: Clusters) -> Lines:
    """MariaDB, 20 ms a flush, 16 processes, no-op members a second: at least 1.0 of stock."""
    clusters._found.start("mysql", SlowMariaDB())
    yield from members_per_second(clusters, "mysql", {}, 1.0)


def large_redis(clusters: Clusters) -> Lines:
    """Redis, a chord of 20,000, 4 processes, start included: at least 1.0 of stock."""
    yield from members_per_second(clusters, "redis", {}, 1.0, {20_000: 3}, processes=4)


def members_per_second(
    clusters: Clusters,
    backend: str,
    settings: dict[str, Any],
    bar: float,
    sizes: dict[int, int] = SIZES,
    processes: int = PROCESSES,
) -> Lines:
    with benches(clusters, backend, concurrency=processes, more_settings=settings) as both:
        for size, rounds in sizes.items():
            seconds: dict[str, list[float]] = {half: [] for half in HALVES}
            for number in range(rounds):
                for half in sorted(both, reverse=number % 2 == 0):
                    both[half].cluster.app.set_current()
                    seconds[half].append(timed(lambda: both[half].run(size)))  # noqa: B023
            stock, patched = (size / statistics.median(seconds[half]) for half in HALVES)
            delay = settings and settings["database_engine_options"]["connect_args"]["options"]
            yield (
                (
                    f"{backend} {delay or ''} N = {size:6}: stock {stock:6.1f} members/s, patched "
                    f"{patched:6.1f}, ratio {patched / stock:.2f} (bar {bar})"
                ),
                patched / stock >= bar,
            )


class Distant:
    """A server that is some milliseconds away: a proxy that delays what comes back."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._target, self._seconds = (host, port), seconds
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, target, delay in ((client, server, 0.0), (server, client, 1.0)):
                    arguments = (source, target, delay * self._seconds)
                    threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, seconds: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                time.sleep(seconds)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def starts(clusters: Clusters) -> Lines:
    """Start 10,000 members: Redis 2 times as fast as stock, 1 ms away 8 times, RabbitMQ 2 times."""
    for name, broker, delay, bar in (
        ("Redis", "redis", 0.0, 2.0),
        ("Redis, 1 ms away", "redis", 0.001, 8.0),
        ("RabbitMQ, confirmed", "rabbitmq", 0.0, 2.0),
    ):
        found: dict[str, list[tuple[float, float]]] = {half: [] for half in HALVES}
        with contextlib.closing(Stack(clusters._found, "redis", broker)) as stack:
            config = stack.config()
            # Tests look into a file whenever a setting is read.
            config.pop("live")
            if broker == "rabbitmq":
                config["settings"]["broker_transport_options"] = {"confirm_publish": True}
            for number in range(5):
                for half in sorted(HALVES, reverse=number % 2 == 0):
                    # Each in a process of its own, whose memory is that of one start.
                    with get_context("spawn").Pool(1) as pool:
                        arguments = (config, half == "patched", 10_000, delay)
                        found[half].append(pool.apply(start_one, arguments))
        stock, patched = (
            tuple(map(statistics.median, zip(*found[half], strict=True))) for half in HALVES
        )
        yield (
            (
                f"{name:20} stock {stock[0]:6.2f} s, {stock[1]:4.0f} MB, patched {patched[0]:6.2f} "
                f"s, {patched[1]:4.0f} MB: {stock[0] / patched[0]:.2f} times as fast (bar {bar})"
            ),
            stock[0] / patched[0] >= bar,
        )


def start_one(config: Any, patched: bool, size: int, delay: float) -> tuple[float, float]:
    """Start a chord; return how many seconds that took, and the megabytes of this process."""
    settings = config["settings"]
    with contextlib.ExitStack() as closing:
        if delay:
            there = make_url(settings["broker_url"])
            distant = Distant(there.host or "127.0.0.1", there.port or 6379, delay)
            closing.callback(distant.close)
            led = there.set(host="127.0.0.1", port=distant.port)
            settings["broker_url"] = led.render_as_string(hide_password=False)
        app = closing.enter_context(contextlib.closing(make_app(config, patched=patched)))
        app.set_current()
        t = named(app)
        for each in (5, size):
            canvas = chord([t.echo.s(1) for _ in range(each)], t.tsum.s(), app=app)
            seconds = timed(canvas.apply_async)
        with app.connection_for_write() as connection:
            queued = connection.default_channel.queue_purge(settings["task_default_queue"])
        assert size + 5 == queued
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def endings(_: Clusters) -> Lines:
    """End a chord of 10,000 and 100,000: time and memory of the worker no worse than stock's."""
    for backend in ("redis", "postgresql"):
        for size in (10_000, 100_000):
            found: dict[str, list[tuple[float, float]]] = {half: [] for half in HALVES}
            for half in HALVES * 3:
                command = [sys.executable, "-m", "benchmarks.ending", backend, half, str(size)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, megabytes = map(float, done.stdout.split())
                found[half].append((seconds, megabytes))
            (slow, large), (stock, before) = (
                tuple(map(statistics.median, zip(*found[half], strict=True)))
                for half in reversed(HALVES)
            )
            yield (
                (
                    f"{backend:10} N = {size:6}: stock {stock:6.2f} s, {before:5.0f} MB more, "
                    f"patched {slow:6.2f} s, {large:5.0f} MB more"
                ),
                slow <= 1.05 * stock and large <= 1.05 * before,
            )
