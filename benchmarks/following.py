"""What it costs to follow chords: how far one is, and to await many of them."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from tests.app_factory import make_app
from tests.harness import ROOT, Cluster, Clusters

from benchmarks.lanes import timed
from chordguard import progress
from chordguard.aio import aget
from chordguard.ledger.access import required_ledger
from chordguard.ledger.model import Part
from chordguard.upstream import sessions
from chordguard.upstream.backends import is_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Members of the chord whose progress is asked for, and how often that is done.
MEMBERS, ASKED = 10_000, 200

#: How many of them Celery's `completed_count` reads, which would take minutes for all.
READ = 1000

#: How many results are awaited at once, and the seconds over which they get ready.
WAITING, SECONDS = 1000, 5.0

#: A process that stores results whose values are the times at which it does.
STORE = """
import json, sys, time
from tests.app_factory import make_app
config, ids, pause = json.load(sys.stdin)
backend = make_app(config, patched=False).backend
backend.store_result("first", 0, "SUCCESS")
for id_ in ids:
    backend.store_result(id_, time.time(), "SUCCESS")
    time.sleep(pause)
"""


def how_far(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """Progress of a live chord of 10,000: a median under 2 ms beyond one round trip."""
    for backend in ("redis", "postgresql"):
        cluster = clusters(backend, patched=True)
        app, ids = cluster.app, [uuid() for _ in range(MEMBERS)]
        ledger, group_id, body_id = required_ledger(app), uuid(), uuid()
        ledger.open(group_id, ids, None, time.time() + 3600, 3600, body_id=body_id)
        for index, task_id in enumerate(ids[: MEMBERS // 2]):
            payload = (
                app.backend.encode([1, task_id, "SUCCESS", 1]) if is_redis(app.backend) else None
            )
            ledger.count(group_id, Part(task_id, payload, str(index)))
        trip = median_of(lambda: round_trip(app.backend))  # noqa: B023
        stock = make_app(cluster.config, patched=False)
        some = ids[:: MEMBERS // READ]
        header = stock.GroupResult(group_id, [stock.AsyncResult(task_id) for task_id in some])
        read = timed(header.completed_count)
        for asked in (group_id, body_id):
            found = progress(asked, app)
            assert (MEMBERS, MEMBERS // 2) == (found.total, found.done)
            seconds = median_of(lambda: progress(asked, app))  # noqa: B023
            beyond = 1000 * (seconds - trip)
            yield (
                (
                    f"{backend:10} by the id of its {'header' if asked == group_id else 'body'}: "
                    f"{1000 * seconds:.2f} ms, {beyond:.2f} ms beyond a round trip (bar 2); "
                    f"stock's completed_count of {READ} of them {read:.2f} s"
                ),
                beyond < 2,
            )
        ledger.close(group_id)


def median_of(function: Any) -> float:
    function()
    return statistics.median(timed(function) for _ in range(ASKED))


def round_trip(backend: Any) -> None:
    if is_redis(backend):
        backend.client.ping()
        return
    from sqlalchemy import text

    with sessions.session(backend) as session:
        session.execute(text("SELECT 1"))


def awaiting(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """1,000 results awaited: 2 connections, loop blocked under 50 ms, told within 100 ms."""
    for backend in ("redis", "postgresql"):
        cluster = clusters(backend, patched=True)
        looped = asyncio.run(_await_all(cluster))
        threaded = _in_threads(cluster)
        for how, (late, cpu, connections, blocked) in {"aget": looped, "get()": threaded}.items():
            is_met = how == "get()" or (late < 0.1 and connections <= 2 and blocked < 0.05)
            loop = f", loop blocked {1000 * blocked:.0f} ms at most" if how == "aget" else ""
            yield (
                (
                    f"{backend:10} {how:5}: told after {1000 * late:.1f} ms (median), "
                    f"{connections} connections, {cpu:.2f} s of CPU{loop}"
                ),
                is_met,
            )


def _storer() -> subprocess.Popen[str]:
    """Start a process that stores results; that blocks for longer than all that is measured."""
    return subprocess.Popen(
        [sys.executable, "-c", STORE], stdin=subprocess.PIPE, text=True, cwd=ROOT
    )


def _store(process: subprocess.Popen[str], cluster: Cluster, ids: list[str]) -> None:
    """Have the process store results, one after the other."""
    assert process.stdin is not None
    process.stdin.write(json.dumps([cluster.config, ids, SECONDS / len(ids)]))
    process.stdin.close()


def _sockets() -> int:
    return sum(link.is_socket() for link in Path("/proc/self/fd").iterdir())


async def _await_all(cluster: Cluster) -> tuple[float, float, int, float]:
    ids = [uuid() for _ in range(WAITING)]
    loop, late, blocked, most = asyncio.get_running_loop(), [], 0.0, 0
    process = _storer()
    before = _sockets()

    async def wait(task_id: str) -> None:
        stored = await aget(cluster.app.AsyncResult(task_id), timeout=120)
        late.append(time.time() - stored)

    async def measure() -> None:
        nonlocal blocked, most
        while True:
            started = loop.time()
            await asyncio.sleep(0.005)
            blocked = max(blocked, loop.time() - started - 0.005)
            if int(started * 10) != int(loop.time() * 10):
                most = max(most, _sockets() - before)

    measuring = asyncio.create_task(measure())
    started = time.process_time()
    waiting = [asyncio.create_task(wait(task_id)) for task_id in ids]
    await asyncio.sleep(1)
    await asyncio.to_thread(_store, process, cluster, ids)
    await asyncio.gather(*waiting)
    cpu = time.process_time() - started
    measuring.cancel()
    process.wait()
    return statistics.median(late), cpu, most, blocked


def _in_threads(cluster: Cluster) -> tuple[float, float, int, float]:
    ids = [uuid() for _ in range(WAITING)]
    process = _storer()
    late, most, before = [], 0, _sockets()

    def wait(task_id: str) -> None:
        stored = cluster.app.AsyncResult(task_id).get(timeout=30)
        late.append(time.time() - stored)

    started = time.process_time()
    with ThreadPoolExecutor(WAITING) as pool:
        waiting = [pool.submit(wait, task_id) for task_id in ids]
        time.sleep(5)
        _store(process, cluster, ids)
        while not all(future.done() for future in waiting):
            most = max(most, _sockets() - before)
            time.sleep(0.25)
    cpu = time.process_time() - started
    process.wait()
    failed = [str(future.exception()) for future in waiting if future.exception()]
    if failed:
        print(f"    {len(failed)} of {WAITING} threads failed: {failed[0][:100]}", flush=True)
    assert threading.active_count() < WAITING
    return statistics.median(late or [float("nan")]), cpu, most, 0.0
