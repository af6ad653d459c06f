"""The commands `status` and `check` where many chords live."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis
import sqlalchemy as sa
from celery import states
from tests.chords.stuck import ALONE
from tests.harness import ROOT

from chordguard.ledger.access import ledger_of
from chordguard.ledger.model import Part
from chordguard.ledger.packing import pack, pack_data
from chordguard.lifecycle import safety_net

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.harness import Cluster, Clusters

#: Live chords, of which some have a member whose result was not counted, and as many have one
#: that is nowhere.
LIVE = 10_000
STUCK = 100
ROUNDS = 5

#: Seconds that each command may take.
BARS = {"status": 1.0, "check": 2.0}

#: Commands that look at all keys.
SCANNING = {"keys", "scan"}


def survey(clusters: Clusters) -> Iterator[tuple[str, bool]]:
    """10,000 live chords, 100 stuck: `status` < 1 s, `check` < 2 s on top of loading the app."""
    for backend in ("redis", "postgresql"):
        cluster = clusters(backend, settings=ALONE)
        with tempfile.TemporaryDirectory() as temporary, busy(cluster, Path(temporary) / "gate"):
            fill(cluster)
            alone = min(run(cluster, None)[:2] for _ in range(ROUNDS))
            yield f"{backend:10} loading the app alone: {seconds_of(alone)}", True
            for command, bar in BARS.items():
                before = commands_of(cluster)
                taken = [run(cluster, command) for _ in range(ROUNDS)]
                sent = commands_of(cluster) - before
                best = min((wall, cpu) for wall, cpu, _ in taken)
                own = (best[0] - alone[0], best[1] - alone[1])
                line = (
                    f"{backend:10} {command:6} {seconds_of(own)} (bar {bar:.0f}) on top of that; "
                    f"{found(taken[0][2])}; {told(sent)}"
                )
                yield line, own[0] < bar and not sent.keys() & SCANNING


def seconds_of(taken: tuple[float, float]) -> str:
    """Return the time on the clock, and that of the processor."""
    return f"{taken[0]:.2f} s, {taken[1]:.2f} s of CPU time"


@contextlib.contextmanager
def busy(cluster: Cluster, gate: Path) -> Iterator[None]:
    """Keep the worker's processes busy, so that messages stay where they are."""
    cluster.app.set_current()
    for _ in range(2):
        cluster.tasks.wait_for_file.delay(str(gate), deadline=3600)
    try:
        yield
    finally:
        cluster.app.control.purge()
        gate.touch()


def fill(cluster: Cluster) -> None:
    """Have chords live of two members each: one was counted, the other waits in the queue."""
    app = cluster.app
    body = pack_data(app, cluster.tasks.collect.s().set(task_id=str(uuid4())))
    chords = [(str(uuid4()), [str(uuid4()), str(uuid4())]) for _ in range(LIVE)]
    add = {"redis": add_to_redis, "postgresql": add_to_database}[cluster.stack.backend]
    add(cluster, chords, body)
    with app.producer_or_acquire() as producer:
        for number, (group_id, (_, waiting)) in enumerate(chords):
            if cluster.stack.backend == "postgresql":
                send = {"task_id": safety_net.unlock_id(group_id), "producer": producer}
                app.send_task("celery.chord_unlock", (group_id, None), **send)
            if number < STUCK // 2:
                app.backend.store_result(waiting, 2, states.SUCCESS)
            elif number >= STUCK:
                app.send_task("tests.echo", (2,), task_id=waiting, producer=producer)


def add_to_redis(cluster: Cluster, chords: list[tuple[str, list[str]]], body: bytes) -> None:
    ledger = ledger_of(cluster.app.backend)
    for group_id, header in chords:
        ledger.open(group_id, header, body, time.time() + 3600, 86400)
        ledger.set_size(group_id, len(header))
        part = cluster.app.backend.encode([1, header[0], states.SUCCESS, 1])
        ledger.count(group_id, Part(header[0], part, "0"))


def add_to_database(cluster: Cluster, chords: list[tuple[str, list[str]]], body: bytes) -> None:
    """Add the rows at once, since the ledger has a connection for each."""
    ledger = ledger_of(cluster.app.backend)
    task = cluster.app.backend.task_cls.__table__
    now = time.time()
    row = {"size": 2, "returned": 1, "created": now, "progressed": now, "due": now + 3600}
    engine = sa.create_engine(cluster.stack.database_url)
    with engine.begin() as connection:
        connection.execute(
            ledger.tables.chord.insert(),
            [
                {**row, "id": id_, "claimed_until": 0, "header": pack(header), "body": body}
                for id_, header in chords
            ],
        )
        connection.execute(
            ledger.tables.member.insert(),
            [{"chord_id": id_, "task_id": header[0]} for id_, header in chords],
        )
        connection.execute(
            task.insert(),
            [{"task_id": header[0], "status": states.SUCCESS} for _, header in chords],
        )
        connection.execute(sa.text("COMMIT"))
        connection.execute(sa.text("ANALYZE"))
    engine.dispose()


def run(cluster: Cluster, command: str | None) -> tuple[float, float, Any]:
    """Return the seconds and the CPU time of a command in a process of its own, and its JSON.

    Without a command the app is loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "proj.py").write_text(
            "import json\nfrom tests.app_factory import make_app\n"
            f"app = make_app(json.loads({json.dumps(cluster.config)!r}), patched=True)\n"
        )
        call = ["-m", "chordguard", "-A", "proj", "--json", command] if command else ["-m", "proj"]
        path = os.pathsep.join([folder, str(ROOT), os.environ.get("PYTHONPATH", "")])
        # Modules are compiled once, as where they are installed, not with each command.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        started, used = time.perf_counter(), cpu_of_children()
        done = subprocess.run(
            [sys.executable, *call],
            env={**env, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds, cpu = time.perf_counter() - started, cpu_of_children() - used
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr or done.stdout}")
    return seconds, cpu, json.loads(done.stdout) if command else None


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def found(data: Mapping[str, Any]) -> str:
    """Return what a command found."""
    if data["command"] == "status":
        return f"{data['live']} live, {data['stuck']} stuck"
    kinds = Counter(problem["diagnosis"] for problem in data["problems"])
    return f"{data['live']} live, " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))


def commands_of(cluster: Cluster) -> Counter[str]:
    """Return how often the server of the result backend has executed each command."""
    if cluster.stack.backend == "redis":
        with contextlib.closing(redis.Redis.from_url(cluster.stack.result_url)) as client:
            stats = client.info("commandstats")
        return Counter(
            {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        )
    engine = sa.create_engine(cluster.stack.database_url, poolclass=sa.NullPool)
    query = "SELECT sum(seq_scan), sum(idx_scan) FROM pg_stat_user_tables"
    with engine.connect() as connection:
        sequential, by_index = connection.execute(sa.text(query)).one()
    return Counter({"sequential scans": sequential or 0, "index scans": by_index or 0})


def told(sent: Counter[str]) -> str:
    """Return what the server was asked for, in one run."""
    each = {name: round(count / ROUNDS, 1) for name, count in sent.most_common(6)}
    return ", ".join(f"{name} {count:g}" for name, count in each.items())
