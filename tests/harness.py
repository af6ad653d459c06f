"""Real workers for the tests, and the outcome of a canvas that they run.

A `Stack` is a broker and a result backend with names of their own, `running_worker` a worker
process on it, a `Cluster` both with an app for the producer. `Clusters` keeps started clusters for
the tests that follow: chords have ids of their own and do not disturb each other. Our settings are
read when they are used, so a kept cluster gets those of the next test without another worker.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from amqp import ChannelError
from celery import states
from celery.canvas import Signature
from celery.result import ResultSet
from kombu.utils.encoding import safe_repr

from tests import servers, tasks
from tests.app_factory import LiveSettings, make_app
from tests.django import project
from tests.worker import main_of_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

T = TypeVar("T")

BACKENDS = ("redis", "sqlite", "postgresql", "mysql")
#: Result backends whose own store keeps no ledger. Celery counts chords in memcached and (from 5.4
#: on) in DynamoDB, and polls them elsewhere.
WITHOUT_LEDGER = ("memcached", "filesystem", "dynamodb")
#: Those that need no server.
SERVERLESS = ("sqlite", "filesystem")
#: Where results go and, behind the "+", where the ledger has a store of its own. "none" is an app
#: without a result backend, see `tests.journal`.
WITH_OWN_LEDGER = (
    "redis+postgresql",
    "rpc+postgresql",
    "rpc+redis",
    "none+postgresql",
    "none+redis",
)
DJANGO_BACKENDS = project.BACKENDS
BROKERS = ("redis", "rabbitmq")
ROOT = Path(__file__).parent.parent

#: Seconds between two looks at a condition, at first and at most.
POLL_INTERVAL = 0.01
POLL_INTERVAL_MAX = 0.1
#: Seconds that a condition may take. A test that passes never waits so long, even on a machine
#: that does ten other things.
WAIT_DEADLINE = 30.0
#: Seconds that a worker may take until it is ready.
READY_DEADLINE = 90.0
#: Seconds that a worker may take to end its tasks after SIGTERM before it is killed.
STOP_DEADLINE = 10.0
#: Seconds in which a canvas has to end.
OUTCOME_DEADLINE = 60.0
#: Seconds that stored results live on a Redis that others may use, too.
RESULT_EXPIRES = 600
#: Clusters kept for the tests that follow.
CLUSTERS_KEPT = 12
#: Settings of ours that workers read when they start.
READ_AT_START = ("chord_watchdog_interval", "chord_ledger_url")

UNLOCK = "celery.chord_unlock"


def wait_until(
    condition: Callable[[], T], timeout: float = WAIT_DEADLINE, what: str = "condition"
) -> T:
    """Return the first true value of `condition()`; fail after `timeout` seconds, naming `what`."""
    deadline = time.monotonic() + timeout
    interval = POLL_INTERVAL
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not in {timeout} s, last value {value!r}")
        time.sleep(interval)
        interval = min(interval * 1.3, POLL_INTERVAL_MAX)
    return value


def servers_of(backend: str, *brokers: str) -> list[str]:
    """Return the servers that a result backend, and brokers, need."""
    kinds = {DJANGO_BACKENDS.get(kind, kind) for kind in backend.split("+")} | {*brokers}
    if "none" in kinds:
        kinds.add("redis")
    return sorted(kinds - {*SERVERLESS, "rpc", "none"})


class Stack:
    """A broker and a result backend for one app: own queues, key prefix, database.

    `backend` is one of :data:`BACKENDS` or :data:`WITH_OWN_LEDGER`.
    """

    def __init__(self, found: servers.Servers, backend: str, broker: str) -> None:
        self.backend = backend
        self.broker = broker
        self.name = f"cg-{uuid.uuid4().hex[:12]}"
        self._found = found
        broker_server = found.get(broker)
        self.broker_url = broker_server.url
        self.folder = Path(tempfile.mkdtemp(prefix="chordguard-test-"))
        results, _, ledger = backend.partition("+")
        #: The database server or file; `backend` may reach it by way of Django.
        self.database = DJANGO_BACKENDS.get(results, results)
        self.database_url: Any = self._new_database(self.database, "results")
        #: Where the ledger is; None: beside the results.
        self.ledger_url = self._new_database(ledger, "ledger")
        if ledger == "redis":
            self.ledger_url = found.get("redis").url
        if results in DJANGO_BACKENDS:
            self.result_url = "django-db"
        elif self.database_url:
            create_result_tables(self.database_url)
            self.result_url = f"db+{self.database_url}"
        elif results == "none":
            self.result_url = f"tests.journal:JournalBackend+{found.get('redis').url}"
        else:
            self.result_url = self._url_without_database()

    def _url_without_database(self) -> str:
        results = self.backend.partition("+")[0]
        if results == "rpc":
            return "rpc://"
        if results == "filesystem":
            folder = self.folder / "results"
            folder.mkdir()
            return folder.as_uri()
        url = self._found.get(results).url
        return f"{url}{self.name}" if results == "dynamodb" else url

    def _new_database(self, kind: str, name: str) -> str | None:
        if kind == "sqlite":
            return f"sqlite:///{self.folder / name}.sqlite"
        if kind not in ("postgresql", "mysql"):
            return None
        server: Any = self._found.get(kind)
        url: str = server.kind.create_database(server)
        return url

    def config(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what `make_app` needs; `settings` are Celery's, stronger than the defaults."""
        defaults: dict[str, Any] = {
            "broker_url": self.broker_url,
            "result_backend": self.result_url,
            "result_expires": RESULT_EXPIRES,
            # Stock asks every second; the tests have less time.
            "result_chord_retry_interval": 0.2,
            "task_default_queue": self.name,
            "task_default_exchange": self.name,
            "task_default_routing_key": self.name,
            "control_exchange": f"{self.name}-control",
            "event_exchange": f"{self.name}-events",
            "broker_connection_retry_on_startup": True,
            "worker_send_task_events": False,
        }
        if self.ledger_url:
            defaults["chord_ledger_url"] = self.ledger_url
        if "redis" in self.backend:
            # The watchdogs of a prefix look after its chords.
            defaults["result_backend_transport_options"] = {"global_keyprefix": f"{self.name}:"}
        if self.broker == "redis":
            defaults["broker_transport_options"] = {"global_keyprefix": f"{self.name}:"}
        config = {
            "name": self.name,
            "tasks": "tests.tasks",
            "live": str(self.folder / "live.json"),
            "settings": {**defaults, **(settings or {})},
        }
        if self.backend in DJANGO_BACKENDS:
            config["django"] = self._project()
        return config

    def _project(self) -> dict[str, Any]:
        """Return the Django project of this stack, whose tables are created."""
        wanted = {
            "databases": {"default": project.database_of(self.database, self.database_url)},
            "apps": list(project.APPS),
        }
        project.use(wanted)
        project.migrate()
        return wanted

    def close(self) -> None:
        """Remove the queues, the database and the files."""
        for url in {self.broker_url, self.result_url, self.ledger_url}:
            if url and "redis:" in url:
                delete_keys(url[url.index("redis:") :], f"{self.name}:*")
        if self.broker != "redis":
            delete_queues(self.broker_url, self.name)
        kinds = (self.database, self.backend.partition("+")[2])
        for kind, url in zip(kinds, (self.database_url, self.ledger_url), strict=True):
            if kind in ("postgresql", "mysql"):
                database: Any = self._found.get(kind)
                database.kind.drop_database(database, url)
        shutil.rmtree(self.folder, ignore_errors=True)


def create_result_tables(url: str) -> None:
    """Create Celery's tables with a session manager of our own.

    That of the backend is shared by all apps of a process up to Celery 5.4, which then creates
    tables in the first database only.
    """
    from celery.backends.database.session import SessionManager

    manager = SessionManager()
    manager.prepare_models(manager.get_engine(url))


def delete_keys(url: str, pattern: str) -> None:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        for key in client.scan_iter(pattern, count=1000):
            client.delete(key)


def delete_queues(url: str, name: str) -> None:
    import kombu

    with kombu.Connection(url) as connection:
        for what in ("queue_delete", "exchange_delete"):
            channel = connection.channel()
            getattr(channel, what)(name)
        for exchange in (f"{name}-control.pidbox", f"reply.{name}-control.pidbox"):
            connection.channel().exchange_delete(exchange)


#: Pools that have to change the interpreter before it imports anything.
GREEN_POOLS = ("gevent", "eventlet")

#: Workers are forked from a process that has imported what all of them need: a second's work.
#: Not Celery's database backend: up to 5.4 the session manager that comes with it would take the
#: worker's main process for a child of its pool, and share its connection with those.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        *("tests.worker", "tests.app_factory", "tests.tasks", "tests.old_redis"),
        *("celery.apps.worker", "celery.worker.components", "celery.worker.consumer"),
        *("celery.concurrency.prefork", "celery.events.state", "celery.app.control"),
        *("celery.backends.redis", "kombu.transport.redis", "sqlalchemy.orm"),
        *("psycopg2", "pymysql", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql"),
    ]
)


class Fork:
    """A forked worker, with what is used of `subprocess.Popen`."""

    def __init__(self, options: Path, log: Path, env: dict[str, str]) -> None:
        self._process = _forks.Process(
            target=main_of_fork, args=(str(options), str(log), env), daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid  # type: ignore[assignment]
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return self.returncode


class Worker:
    """A worker process."""

    def __init__(self, process: subprocess.Popen[bytes] | Fork, hostname: str, log: Path) -> None:
        self.process = process
        self.hostname = hostname
        self.log = log
        #: Where the log of the running test begins.
        self.log_start = 0
        self._asked_to_stop = False

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def begin_log(self) -> None:
        """Leave out of `log_text` what was logged until now."""
        self.log_start = self.log.stat().st_size if self.log.exists() else 0

    def log_text(self) -> str:
        """Return what the worker logged during the running test."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def kill(self) -> None:
        """Kill the main process only, as the kernel's out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def ask_to_stop(self) -> None:
        """Ask the worker to end its tasks and then itself; a second time is no second request."""
        if self.is_alive and not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.terminate()

    def stop(self, grace: float = STOP_DEADLINE) -> None:
        """Let the worker end its tasks for `grace` seconds, then kill it and its pool."""
        self.ask_to_stop()
        if self.is_alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def wait_until_ready(worker: Worker, ready_file: Path) -> None:
    try:
        wait_until(lambda: ready_file.exists() or not worker.is_alive, READY_DEADLINE, "worker")
        assert worker.is_alive, f"worker ended with {worker.process.returncode}"
    except AssertionError as error:
        raise AssertionError(f"{error} before it was ready:\n{worker.log_text()[-4000:]}") from None


#: The workers that run now; the report of a failed test shows their logs.
running: list[Worker] = []


@contextlib.contextmanager
def running_worker(
    config: dict[str, Any],
    *,
    patched: bool = True,
    concurrency: int = 2,
    pool: str = "prefork",
    loglevel: str = "INFO",
    python: str = sys.executable,
    env: dict[str, str] | None = None,
    statements: str | None = None,
    claim_seconds: float | None = None,
    faults: dict[str, Any] | None = None,
    journal: tuple[str, str] | None = None,
    **worker_options: Any,
) -> Iterator[Worker]:
    """Run a worker until the block ends.

    `config` comes from `Stack.config`, `python` may be that of an environment with another Celery,
    `worker_options` go to `app.Worker`. To the file `statements` the worker adds a letter for each
    SQL statement (see `tests.worker`). A claim lasts `claim_seconds`; where the worker dies by
    itself `faults` say, and `journal` is a backend and a file (see `tests.faults`). The block
    starts when it is ready for tasks.
    """
    with tempfile.TemporaryDirectory(prefix="chordguard-worker-") as temporary:
        folder = Path(temporary)
        hostname = f"w{uuid.uuid4().hex[:8]}@{config['name']}"
        ready_file = folder / "ready"
        options = {
            "app": config,
            "patched": patched,
            "concurrency": concurrency,
            "pool": pool,
            "loglevel": loglevel,
            "hostname": hostname,
            "ready_file": str(ready_file),
            "statements": statements,
            "claim_seconds": claim_seconds,
            "faults": faults,
            "journal": journal,
            "worker": worker_options,
        }
        (folder / "options.json").write_text(json.dumps(options))
        log = folder / "worker.log"
        log.touch()
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        if "django" in config:
            env.update(project.IN_WORKER)
        process: subprocess.Popen[bytes] | Fork
        if python == sys.executable and pool not in GREEN_POOLS:
            process = Fork(folder / "options.json", log, env)
        else:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [python, "-m", "tests.worker", str(folder / "options.json")],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=env,
                )
        running.append(started := Worker(process, hostname, log))
        try:
            wait_until_ready(started, ready_file)
            yield started
        finally:
            started.stop()
            running.remove(started)


@dataclass
class Outcome:
    """How a canvas ended, or that it did not."""

    state: str
    #: The value, the exception (state FAILURE), or None (not ended).
    value: Any
    seconds: float
    #: What the worker and the queue looked like when a canvas that did not end was given up.
    evidence: str
    result: Any

    @property
    def hung(self) -> bool:
        return self.state not in states.READY_STATES


class Cluster:
    """An app for the test to produce with, and a worker that consumes."""

    def __init__(self, stack: Stack, app: Celery, worker: Worker, config: dict[str, Any]) -> None:
        self.stack = stack
        self.app = app
        self.worker = worker
        self.config = config
        self.tasks = tasks.named(app)
        self._live = LiveSettings(config["live"]) if "live" in config else None
        self._has_hung = False

    def set_live(self, settings: dict[str, Any]) -> None:
        """Give the app, the worker and its pool these of our settings, and no other live ones.

        What a test set on the app itself is stronger, and gone for the next one.
        """
        changes = self.app.conf.maps[0]
        for name in [name for name in changes if is_live(name)]:
            del changes[name]
        assert self._live is not None, "a cluster without live settings"
        if self._live != settings:
            self._live.replace(settings)

    def run(self, canvas: Any, deadline: float = OUTCOME_DEADLINE, **options: Any) -> Any:
        """Return the value of a canvas that is expected to succeed."""
        outcome = self.outcome(canvas, deadline, **options)
        assert outcome.state == states.SUCCESS, outcome
        return outcome.value

    def outcome(
        self,
        canvas: Any,
        deadline: float = OUTCOME_DEADLINE,
        quiet: float | None = None,
        **options: Any,
    ) -> Outcome:
        """Publish `canvas` (or take its result, if already published) and see how it ends.

        Given `quiet`, a canvas for which nothing but polling went on for so many seconds is called
        hung before the `deadline`. `options` go to ``apply_async``.
        """
        result = canvas.apply_async(**options) if isinstance(canvas, Signature) else canvas
        started = time.monotonic()
        interval = POLL_INTERVAL
        idle_since: float | None = None
        next_look = started + 0.5
        while not is_ready(result):
            now = time.monotonic()
            if now - started > deadline or (quiet and idle_since and now - idle_since > quiet):
                self._has_hung = True
                break
            if quiet and now > next_look:
                idle_since = (idle_since or time.monotonic()) if self.is_idle() else None
                next_look = time.monotonic() + 0.25
            time.sleep(interval)
            interval = min(interval * 1.3, POLL_INTERVAL_MAX)
        seconds = time.monotonic() - started
        state, value = state_and_value(result)
        evidence = self.evidence(result) if state not in states.READY_STATES else ""
        return Outcome(state, value, seconds, evidence, result)

    def activity(self) -> dict[str, list[str]] | None:
        """Return the names of the tasks that the worker holds by state; None if it does not say.

        The states are asked for in the order of a task's way, so that none slips by in between.
        """
        inspect = self.app.control.inspect(destination=[self.worker.hostname], timeout=2)
        held: dict[str, list[str]] = {}
        for state in ("scheduled", "reserved", "active"):
            reply = getattr(inspect, state)()
            if not reply:
                return None
            held[state] = [
                entry.get("request", entry)["name"] for entry in reply[self.worker.hostname]
            ]
        return held

    def queue_length(self) -> int:
        with self.app.connection_for_write() as connection:
            try:
                queue = connection.default_channel.queue_declare(self.stack.name, passive=True)
            except ChannelError:
                # On Redis a queue without messages does not exist.
                return 0
            return queue.message_count

    def is_idle(self) -> bool:
        """Tell whether no task but ``celery.chord_unlock`` is queued, waiting or running.

        Looked at twice: what was running the first time may have sent another task.
        """
        return self._holds_nothing() and self._holds_nothing()

    def _holds_nothing(self) -> bool:
        if self.queue_length():
            return False
        held = self.activity()
        return held is not None and not [
            name for names in held.values() for name in names if name != UNLOCK
        ]

    def evidence(self, result: Any) -> str:
        """Describe what is known of a canvas that did not end."""
        lines = [f"worker alive: {self.worker.is_alive}"]
        if self.worker.is_alive:
            lines += [f"worker holds: {self.activity()}", f"queue: {self.queue_length()}"]
        while result is not None:
            for member in getattr(result, "results", None) or [result]:
                held = safe_repr(state_and_value(member))
                lines.append(f"{type(member).__name__} {member.id}: {held}")
            result = result.parent
        return "\n".join(lines)

    def settle_down(self) -> None:
        """Revoke the pollers of chords that hung, which would load the tests that follow."""
        if not self._has_hung or not self.worker.is_alive:
            return
        self._has_hung = False
        inspect = self.app.control.inspect(destination=[self.worker.hostname], timeout=2)
        pollers = {
            request["id"]
            for state in ("active", "reserved", "scheduled")
            for entry in (getattr(inspect, state)() or {}).get(self.worker.hostname, ())
            if (request := entry.get("request", entry))["name"] == UNLOCK
        }
        if pollers:
            self.app.control.revoke(list(pollers), destination=[self.worker.hostname])


def is_ready(result: Any) -> bool:
    if isinstance(result, ResultSet):
        return all(is_ready(member) for member in result.results)
    return result.state in states.READY_STATES


def state_and_value(result: Any) -> tuple[str, Any]:
    """Return how `result` ended, without raising and without looking at its parents."""
    if not isinstance(result, ResultSet):
        state = result.state
        return state, result.result if state in states.READY_STATES else None
    ended = [state_and_value(member) for member in result.results]
    for state, value in ended:
        if state in states.PROPAGATE_STATES:
            return state, value
    for state, _ in ended:
        if state not in states.READY_STATES:
            return state, None
    return states.SUCCESS, [value for _, value in ended]


def is_live(setting: str) -> bool:
    """Tell whether running workers follow when the setting changes."""
    return setting.startswith("chord_") and setting not in READ_AT_START


class Clusters:
    """The clusters of one test session.

    Called for another test with arguments that differ in live settings alone, it gives the same
    cluster again.
    """

    def __init__(self, found: servers.Servers, *, has_live: bool = True) -> None:
        self._found = found
        #: Whether settings of ours are live: every process looks into a file for them.
        self._has_live = has_live
        #: The live settings of the clusters that the running test has.
        self._in_use: dict[str, dict[str, Any]] = {}
        self._kept: OrderedDict[str, tuple[Cluster, contextlib.ExitStack]] = OrderedDict()
        self._leaving: list[contextlib.ExitStack] = []

    def __call__(
        self,
        backend: str = "redis",
        broker: str = "redis",
        *,
        patched: bool = True,
        settings: dict[str, Any] | None = None,
        shared_by: str | None = None,
        **worker: Any,
    ) -> Cluster:
        """Return a cluster that may be shared; `worker` goes to `running_worker`.

        With `shared_by` it is shared with the tests alone that give the same name.
        """
        settings = settings or {}
        # Celery alone knows none of them.
        own = {name for name in settings if is_live(name)} if self._has_live else set()
        live = {name: settings[name] for name in settings if patched and name in own}
        fixed = {
            name: settings[name]
            for name in settings
            if name not in own and (patched or not is_live(name))
        }
        key = json.dumps([backend, broker, patched, fixed, shared_by, worker], sort_keys=True)
        while self._in_use.setdefault(key, live) != live:
            key += ", one more"
        if key in self._kept and not self._kept[key][0].worker.is_alive:
            self._dismiss(key)
        if key not in self._kept:
            if len(self._kept) >= CLUSTERS_KEPT:
                self._dismiss(next(iter(self._kept)))
            with contextlib.ExitStack() as closing:
                cluster = closing.enter_context(
                    self.alone(
                        backend, broker, patched=patched, settings=fixed, live=live, **worker
                    )
                )
                # What it says when it starts is in its log alone.
                cluster.worker.begin_log()
                self._kept[key] = (cluster, closing.pop_all())
        if self._has_live:
            self._kept[key][0].set_live(live)
        self._kept.move_to_end(key)
        cluster = self._kept[key][0]
        if "django" in cluster.config:
            project.use(cluster.config["django"])
        # Canvases ask for the current app here and there.
        cluster.app.set_current()
        return cluster

    @contextlib.contextmanager
    def alone(
        self,
        backend: str = "redis",
        broker: str = "redis",
        *,
        patched: bool = True,
        settings: dict[str, Any] | None = None,
        live: dict[str, Any] | None = None,
        **worker: Any,
    ) -> Iterator[Cluster]:
        """Run a cluster for one test, which may do to it what it likes.

        `live` are settings that `Cluster.set_live` may change.
        """
        with contextlib.closing(Stack(self._found, backend, broker)) as stack:
            config = stack.config(settings)
            if self._has_live:
                LiveSettings(config["live"]).replace(live or {})
            else:
                del config["live"]
            with running_worker(config, patched=patched, **worker) as process:
                app = make_app(config, patched)
                app.set_current()
                try:
                    yield Cluster(stack, app, process, config)
                finally:
                    app.close()

    def settle_down(self) -> None:
        """Say that a test is over."""
        self._in_use.clear()
        for cluster, _ in self._kept.values():
            cluster.settle_down()

    def _dismiss(self, key: str) -> None:
        """Tell a cluster to end; it has time until the next one is told."""
        self._close_leaving()
        cluster, closing = self._kept.pop(key)
        cluster.worker.ask_to_stop()
        self._leaving.append(closing)

    def _close_leaving(self) -> None:
        while self._leaving:
            self._leaving.pop().close()

    def close(self) -> None:
        for cluster, closing in self._kept.values():
            cluster.worker.ask_to_stop()
            self._leaving.append(closing)
        self._kept.clear()
        self._close_leaving()
