"""Run one worker: ``python -m tests.worker OPTIONS.json``, or `main_of_fork`.

Not through the ``celery`` command, since that of Celery 5.2.7 does not start on Python 3.12.
The options are those that `harness.running_worker` writes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any


def count_statements(path: str) -> None:
    """Add a letter to the file for all that this process and its children send to a database.

    B, C, R: BEGIN, COMMIT, ROLLBACK. S: any other statement. P: the ping of a pooled connection
    (SQLAlchemy 2). Of Django S alone.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine.default import DefaultDialect

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    _count_statements_of_django(descriptor)

    def counting(letter: bytes) -> Any:
        return lambda *_: os.write(descriptor, letter)

    for name, letter in (
        ("before_cursor_execute", b"S"),
        ("begin", b"B"),
        ("commit", b"C"),
        ("rollback", b"R"),
    ):
        event.listen(Engine, name, counting(letter))
    if not hasattr(DefaultDialect, "_do_ping_w_event"):
        return
    ping = DefaultDialect._do_ping_w_event

    def count_ping(self: Any, connection: Any) -> bool:
        os.write(descriptor, b"P")
        return ping(self, connection)

    DefaultDialect._do_ping_w_event = count_ping  # type: ignore[method-assign, assignment]


def _count_statements_of_django(descriptor: int) -> None:
    try:
        from django.db.backends.signals import connection_created
    except ImportError:
        return

    def count(execute: Any, sql: str, *args: Any) -> Any:
        if "set_config" not in sql and not sql.startswith("SET "):
            os.write(descriptor, b"S")  # not what a new connection is told
        return execute(sql, *args)

    def watch(connection: Any, **_: Any) -> None:
        if count not in connection.execute_wrappers:
            connection.execute_wrappers.append(count)

    connection_created.connect(watch, weak=False)


def main(path: str) -> int:
    options = json.loads(Path(path).read_text())
    if options["pool"] in ("gevent", "eventlet"):
        # Has to come before anything else imports socket or threading.
        from celery import maybe_patch_concurrency

        maybe_patch_concurrency(["worker", "-P", options["pool"]], ["-P"], ["--pool"])

    from celery.signals import worker_ready

    from tests.app_factory import make_app

    ready_file = Path(options["ready_file"])

    @worker_ready.connect(weak=False)
    def tell_ready(**kwargs: Any) -> None:
        ready_file.write_text(str(os.getpid()))

    if options["claim_seconds"]:
        from chordguard.ledger import claims

        claims.CLAIM_SECONDS = options["claim_seconds"]
    if options["statements"]:
        count_statements(options["statements"])
    app = make_app(options["app"], options["patched"])
    if options["journal"]:
        from tests import faults

        faults.keep_journal(*options["journal"])
    if options["faults"]:
        from tests import faults

        faults.arrange(options["faults"])
    app.set_default()
    worker = app.Worker(
        hostname=options["hostname"],
        pool=options["pool"],
        concurrency=options["concurrency"],
        loglevel=options["loglevel"],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        **options["worker"],
    )
    worker.start()
    return worker.exitcode or 0


def main_of_fork(path: str, log: str, env: dict[str, str]) -> None:
    """Run a worker in this process, which was forked for it, as ``python -m`` would."""
    os.setsid()
    # Lines of the log begin with it.
    multiprocessing.current_process().name = "MainProcess"
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(env)
    sys.exit(main(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
