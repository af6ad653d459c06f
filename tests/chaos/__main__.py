"""Run many chords while processes are killed and connections are cut, and account for each chord.

    python -m tests.chaos [--backend redis|postgresql|mysql|rpc+postgresql|...]
                          [--mode MODE] [--chords N]
                          [--members N] [--seed N] [--interval SECONDS] [--seconds SECONDS]
                          [--stock]

Modes: ``kills`` (children and whole workers at random, late acknowledgement), ``children`` (they
alone; claims last as long as they do by default, and the last chord ends within 15 seconds of the
last kill), ``steps`` (they die at each step of a chord's end), ``early`` (as kills, with early
acknowledgement), ``cuts`` (the result backend is away for 5 seconds), ``restarts`` (it crashes and
is started again), ``producer`` (it is killed as it sends a header of 1,000).
Without a backend or a mode: all of them. ``--members``: of each header; from 128 on they are
counted on several rows on PostgreSQL and MySQL. ``--interval``: the seconds between two looks of a
watchdog; ``--seconds``: for which chords are started, else as fast as possible. The exit status is
1 if a bar is missed. ``--stock``: Celery alone, whose losses are counted and are no failure.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import chord, states
from sqlalchemy.engine import make_url

from tests import faults, tasks
from tests.app_factory import make_app
from tests.chaos.proxy import Proxy
from tests.harness import Stack, Worker, delete_keys, running_worker
from tests.servers import DurableMySQL, DurableRedis, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chordguard.upstream.results import Results
    from tests.servers import Server

BACKENDS = ("redis", "postgresql", "mysql")
#: Where results go and, behind the "+", where the ledger is.
OWN = ("rpc+postgresql", "rpc+redis", "redis+postgresql")
PORTS = {"redis": 6379, "postgresql": 5432, "mysql": 3306}
MODES = ("kills", "children", "steps", "early", "cuts", "restarts", "producer")
#: The modes in which the result backend is away at times.
AWAY = ("cuts", "restarts")
MEMBERS = 8
#: Seconds: without progress a chord is settled; the watchdogs look; a claim lasts.
TIMEOUT = 8.0
#: Longer than members wait for their turn: who times out has lost members.
EARLY_TIMEOUT = 60.0
INTERVAL = 1.0
CLAIM = 3.0
#: Seconds after the last kill by which the last chord has to have ended, with claims of a minute.
SOON = 15.0
#: Seconds without any change after which those that have not ended never will.
QUIET = 90.0
#: Intervals after `chord_timeout` by which a chord that lost members has to have ended. Each
#: watchdog takes up to 1.2 intervals between two looks.
LATEST = 2 * 1.2


class Started(NamedTuple):
    """A chord that was started: its ids, and when (seconds since the epoch)."""

    body: str
    group: str
    members: tuple[str, ...]
    at: float


class Fleet:
    """Two workers; who is killed is replaced."""

    def __init__(self, config: dict[str, Any], options: dict[str, Any]) -> None:
        self.config, self.options = config, options
        self._stack = contextlib.ExitStack()
        self.workers = [self._start() for _ in range(2)]
        self.kills = collections.Counter[str]()
        self.last_kill = 0.0

    def _start(self) -> Worker:
        return self._stack.enter_context(
            running_worker(self.config, concurrency=2, loglevel="WARNING", **self.options)
        )

    def kill_child(self, dice: random.Random) -> None:
        worker = dice.choice(self.workers)
        children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
        pids = children.read_text().split()
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(dice.choice(pids)), signal.SIGKILL)
                self.kills["child"] += 1
                self.last_kill = time.time()

    def kill_worker(self, dice: random.Random) -> None:
        self._replace(dice.randrange(len(self.workers)))

    def replace_dead(self) -> None:
        for index, worker in enumerate(self.workers):
            if not worker.is_alive:
                self._replace(index)

    def _replace(self, index: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.workers[index].process.pid, signal.SIGKILL)
        self.workers[index].process.wait()
        self.kills["worker"] += 1
        self.last_kill = time.time()
        self.workers[index] = self._start()

    def close(self) -> None:
        self._stack.close()


def wait_for(app: Any, ids: list[str], fleet: Fleet) -> dict[str, Any]:
    """Return the results, once all are ready or nothing has changed for long."""
    from chordguard.upstream.results import Results, read_results

    done: dict[str, Any] = {}
    changed = time.monotonic()
    is_sent = app.conf.result_backend == "rpc://"
    sent = {task_id: app.AsyncResult(task_id) for task_id in ids} if is_sent else {}
    for result in sent.values():
        app.backend.add_pending_result(result, weak=False)
    while len(done) < len(ids) and time.monotonic() - changed < QUIET:
        fleet.replace_dead()
        pending = [task_id for task_id in ids if task_id not in done]
        try:
            found = received(app, sent) if is_sent else read_results(app.backend, pending)
        except Exception:
            found = Results()
        ready = {id_: r for id_, r in found.items() if r.state in states.READY_STATES}
        new = {id_: result for id_, result in ready.items() if id_ not in done}
        if new:
            changed = time.monotonic()
            done.update(new)
        time.sleep(0.25)
    return done


def received(app: Any, sent: dict[str, Any]) -> Results:
    """Return the results that came as messages to this process."""
    from chordguard.upstream.results import Results, StoredResult

    deadline = time.monotonic() + 0.5
    with contextlib.suppress(socket.timeout):
        while time.monotonic() < deadline:
            app.backend.result_consumer.drain_events(timeout=0.1)
    return Results(
        StoredResult(task_id, meta["status"], meta["result"])
        for task_id, result in sent.items()
        if (meta := result._cache) is not None
    )


def entries(journal: Path) -> Iterator[tuple[str, str, float]]:
    """Yield (what was done, of what, when) of each line in the workers' journal."""
    for line in journal.read_text().splitlines() if journal.exists() else ():
        what, name, when = line.split()
        yield what, name, float(when)


def published_twice(journal: Path, group_of: dict[str, str]) -> tuple[int, int]:
    """Return how many bodies were published again: before, and after, that had been noted."""
    inside = outside = 0
    published, closed = set(), set()
    for what, name, _ in entries(journal):
        if what == "closed":
            closed.add(name)
        elif what != "published":
            continue
        elif name not in published:
            published.add(name)
        elif group_of.get(name) in closed:
            outside += 1
        else:
            inside += 1
    return inside, outside


class Run:
    """One run: a backend, a mode, a seed."""

    def __init__(self, servers: Servers, backend: str, mode: str, options: Any) -> None:
        self.mode, self.chords, self.is_stock = mode, options.chords, options.stock
        self.members: int = options.members
        self.interval, self.seconds = options.interval, options.seconds
        self.dice = random.Random(f"{options.seed}-{backend}-{mode}")
        self.backend = backend
        self.server: Server | None = None
        if mode == "restarts":
            durable = {"redis": DurableRedis, "mysql": DurableMySQL}.get(backend)
            self.server = servers.start(backend, durable() if durable else None)
        # Redis as a broker loses the messages that a killed worker has just fetched.
        self.stack = Stack(servers, backend, "rabbitmq")
        self.proxy: Proxy | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="chordguard-chaos-"))

    def config(self) -> dict[str, Any]:
        late = self.mode in ("kills", "children", "steps", *AWAY)
        settings: dict[str, Any] = {
            "task_acks_late": late,
            "task_reject_on_worker_lost": late,
            "result_expires": 3600,
            "chord_watchdog_interval": self.interval,
            "chord_unlock_first_delay": 30,
            "chord_timeout": self.timeout,
            "worker_prefetch_multiplier": 4,
            # Without it Celery drops the result of a task that ends while the backend is away; on
            # SQL it does so in any case.
            "result_backend_always_retry": True,
        }
        config = self.stack.config(settings)
        if self.mode == "cuts":
            self.lead_through_proxy(config["settings"])
        return config

    @property
    def timeout(self) -> float:
        return {"early": EARLY_TIMEOUT, "producer": TIMEOUT, "cuts": 30.0, "restarts": 30.0}.get(
            self.mode, 600.0
        )

    def lead_through_proxy(self, settings: dict[str, Any]) -> None:
        backend, plus, url = settings["result_backend"].rpartition("+")
        there = make_url(url)
        self.proxy = Proxy(there.host or "127.0.0.1", there.port or PORTS[self.backend])
        led = there.set(host="127.0.0.1", port=self.proxy.port)
        settings["result_backend"] = backend + plus + led.render_as_string(hide_password=False)

    def __call__(self) -> bool:
        config = self.config()
        app = make_app(config, patched=not self.is_stock)
        journal = self.folder / "journal"
        kind = "redis" if self.backend.rpartition("+")[2] == "redis" else "database"
        options: dict[str, Any] = {"patched": not self.is_stock}
        if not self.is_stock:
            options["journal"] = (kind, str(journal))
            if self.mode != "children":
                # Longer than a cut, in which nobody can renew it.
                options["claim_seconds"] = 10 if self.mode in AWAY else CLAIM
        if self.mode == "steps" and not self.is_stock:
            points = {"backend": kind, "points": faults.POINTS, "share": 0.01}
            options["faults"] = {**points, "most": 10_000, "folder": str(self.folder)}
        fleet = Fleet(config, options)
        started = time.monotonic()
        try:
            with self.trouble(fleet):
                results = self.produce(app, config)
            ended = wait_for(app, [started.body for started in results], fleet)
            at = time.time()
            self.tell_of(app, [started for started in results if started.body not in ended][:5])
            delays = self.delays(journal, results)
            late = None
            if self.mode not in AWAY and not self.is_stock:
                # Chords that lost members: others end when they are done.
                lost = (id_ for id_, each in ended.items() if "ChordMemberLost" in str(each))
                late = max([0.0, *(delays[id_] for id_ in lost if id_ in delays)])
        finally:
            fleet.close()
            self.close()
        died = len(list(self.folder.glob("died-*")))
        seconds = time.monotonic() - started
        return self.account(results, ended, journal, fleet, died, at, seconds, late, delays)

    def tell_of(self, app: Any, never_ended: list[Started]) -> None:
        """Print what is the matter with chords that have not ended."""
        from chordguard import diagnose

        for chord_ in never_ended if not self.is_stock else ():
            print(f"    {chord_.body}: {diagnose(app, chord_.group)}")

    def delays(self, journal: Path, results: list[Started]) -> dict[str, float]:
        """Return how long after its last progress each chord was forgotten, in seconds, by body."""
        progressed = {chord_.group: chord_.at for chord_ in results}
        closed: dict[str, float] = {}
        for what, name, when in entries(journal):
            if what == "counted" and name not in closed:
                progressed[name] = when
            elif what == "closed":
                closed.setdefault(name, when)
        return {
            chord_.body: closed[chord_.group] - progressed[chord_.group]
            for chord_ in results
            if chord_.group in closed
        }

    @contextlib.contextmanager
    def trouble(self, fleet: Fleet) -> Iterator[None]:
        """Make trouble until all is sent, and for some time after."""
        is_over = threading.Event()

        def kill() -> None:
            while not is_over.wait(self.dice.uniform(0.2, 0.8)):
                if self.mode == "children" or self.dice.random() < 0.85:
                    fleet.kill_child(self.dice)
                else:
                    fleet.kill_worker(self.dice)

        def cut() -> None:
            while self.proxy and not is_over.wait(self.dice.uniform(2, 4)):
                self.proxy.cut()
                fleet.kills["cut"] += 1
                time.sleep(5)
                self.proxy.mend()

        def restart() -> None:
            while self.server and not is_over.wait(self.dice.uniform(4, 8)):
                self.server.restart(away=3)
                fleet.kills["server"] += 1

        makers = {"kills": kill, "children": kill, "early": kill, "cuts": cut, "restarts": restart}
        thread = threading.Thread(target=makers.get(self.mode, lambda: None))
        thread.start()
        try:
            yield
            # About as long as the chords need without trouble.
            time.sleep(min(60, 2 + self.chords * self.members / 200) if self.mode in makers else 0)
        finally:
            is_over.set()
            thread.join()

    def produce(self, app: Any, config: dict[str, Any]) -> list[Started]:
        """Start the chords."""
        if self.mode == "producer":
            return self.produce_in_part(config)
        t = tasks.named(app)
        results = []
        for number in range(self.chords):
            time.sleep(self.seconds / self.chords)
            header = [t.slow.s(index, 0.005) for index in range(self.members)]
            while True:
                try:
                    result = chord(header, self.body(t, number)).apply_async()
                except Exception:  # the backend is away: as the user would, try again
                    time.sleep(0.5)
                    continue
                break
            members = tuple(member.id for member in result.parent.results)
            results.append(Started(result.id, result.parent.id, members, time.time()))
        return results

    def body(self, t: Any, number: int) -> Any:
        from chordguard import strict, tolerant

        body = t.sure_collect.s()
        if self.is_stock:
            return body
        return (strict if number % 2 else tolerant)(body)

    def produce_in_part(self, config: dict[str, Any]) -> list[Started]:
        """Start chords of 1,000 members in processes that are killed half-way."""
        results = []
        for number in range(max(2, self.chords // 100)):
            ids = (f"body-{self.stack.name}-{number}", f"group-{self.stack.name}-{number}")
            arguments = json.dumps([config, *ids, number % 2 == 0])
            subprocess.run([sys.executable, "-m", "tests.chaos.producer", arguments], check=False)
            results.append(Started(*ids, (), time.time()))
        return results

    def account(
        self,
        results: list[Started],
        ended: dict[str, Any],
        journal: Path,
        fleet: Fleet,
        died: int,
        at: float,
        seconds: float,
        late: float | None,
        delays: dict[str, float],
    ) -> bool:
        values = [r.value for r in ended.values() if r.state == states.SUCCESS]
        failed = sum(r.state != states.SUCCESS for r in ended.values())
        size = 1000 if self.mode == "producer" else self.members
        wrong = sum(not self.is_right(value, size) for value in values)
        complete = sum(value == list(range(size)) for value in values)
        # The chord ended, but not even the error of its body could be stored.
        sent = {name for what, name, _ in entries(journal) if what == "published"}
        lost = sum(started.body in sent and started.body not in ended for started in results)
        never = len(results) - len(ended) - lost
        inside, outside = published_twice(
            journal, {started.body: started.group for started in results}
        )
        fatal = never or wrong or outside or (lost and self.mode not in AWAY)
        fatal = fatal or (late or 0) > self.timeout + LATEST * self.interval
        if self.mode in ("kills", "children", "steps"):
            fatal = fatal or failed
        after = at - fleet.last_kill
        if self.mode == "children":
            fatal = fatal or after > SOON
        kills = ", ".join(f"{count} {what}" for what, count in sorted(fleet.kills.items()))
        verdict = "  MISSED" if fatal and not self.is_stock else ""
        who = "stock" if self.is_stock else "patched"
        print(
            f"{self.backend:10} {self.mode:8} {who:7} {len(results)} chords in {seconds:.0f} s; "
            f"{died} processes died by themselves, killed: {kills or 'none'}\n"
            f"    never ended {never}, wrong {wrong}, failed {failed}, complete {complete}, "
            f"bodies whose result was not stored {lost}, "
            f"published again: inside the window {inside}, outside {outside}"
            + (f"; settled at most {late:.1f} s after the last progress" if late else "")
            + (f"; the last ended {after:.1f} s after the last kill" if fleet.last_kill else "")
            + (f", each at most {max(delays.values()):.1f} s after its last part" if delays else "")
            + verdict,
            flush=True,
        )
        return self.is_stock or not fatal

    def is_right(self, value: Any, size: int) -> bool:
        """Tell whether each place has its member's result or, if that is allowed, its error."""
        if len(value) != size:
            return False
        is_lost_allowed = self.mode not in ("kills", "children", "steps")
        # The last one is Celery's own, where a result cannot be stored.
        errors = ("ChordMemberLost", "WorkerLostError", "BackendStoreError")
        return all(
            item == index or (is_lost_allowed and str(item).startswith(errors))
            for index, item in enumerate(value)
        )

    def close(self) -> None:
        if self.proxy:
            self.proxy.close()
        if self.backend == "redis":
            delete_keys(self.stack.result_url, f"{self.stack.name}:*")
        self.stack.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS + OWN)
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--chords", type=int, default=1000)
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=float, default=INTERVAL)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--stock", action="store_true")
    options = parser.parse_args()
    servers = Servers()
    is_fine = True
    try:
        for backend in [options.backend] if options.backend else BACKENDS:
            for mode in [options.mode] if options.mode else MODES:
                is_fine = Run(servers, backend, mode, options)() and is_fine
    finally:
        servers.close()
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
