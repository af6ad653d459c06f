"""End one chord in a process of its own; print the seconds and the megabytes that it took.

``python -m benchmarks.ending redis|postgresql stock|patched SIZE``: all members but one are done
and counted when the clock starts; the last one returns, or the poller finds all results.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery.app.task import Context
from celery.utils import uuid
from tests.app_factory import make_app
from tests.harness import Stack
from tests.servers import Servers
from tests.tasks import named

from chordguard.engine.patch import is_patched
from chordguard.ledger import counters
from chordguard.ledger.sql import DatabaseLedger

#: What each member returned.
VALUE = "x" * 100


def main(backend: str, half: str, size: int) -> None:
    with (
        contextlib.closing(Servers()) as servers,
        contextlib.closing(Stack(servers, backend, "redis")) as stack,
        contextlib.closing(make_app(stack.config(), patched=half == "patched")) as app,
    ):
        app.set_current()
        if backend != "redis":
            # Connections are kept, as in a child of the pool.
            app.backend.session_manager.forked = True
        group_id = uuid()
        # In another process, whose memory is not measured.
        arguments = (stack.config(), half == "patched", group_id, size)
        preparing = multiprocessing.get_context("spawn").Process(target=prepare, args=arguments)
        preparing.start()
        preparing.join()
        assert preparing.exitcode == 0
        # What is imported, and connected to, when the first one is needed.
        end_last(app, uuid(), 1)
        before = megabytes_since_now()
        started = time.perf_counter()
        end_last(app, group_id, size)
        seconds = time.perf_counter() - started
        more = most_megabytes() - before
        with app.connection_for_write() as connection:
            queued = connection.default_channel.queue_purge(stack.name)
    assert queued >= 1, "the body was not published"
    print(seconds, more)


def canvas(app: Any, group_id: str, size: int) -> tuple[Any, Any]:
    """Return the header and the body of a chord whose ids follow from its own."""
    t = named(app)
    members = [t.echo.s(1).set(task_id=f"{group_id}-{index}") for index in range(size)]
    body = t.tsum.s().set(task_id=f"{group_id}-body")
    return members, body


def prepare(config: Any, patched: bool, group_id: str, size: int) -> None:
    """Start a chord without sending anything; have all members but the last one return."""
    with contextlib.closing(make_app(config, patched=patched)) as app:
        app.set_current()
        members, body = canvas(app, group_id, size)
        results = [app.AsyncResult(member.options["task_id"]) for member in members]
        app.backend.apply_chord((group_id, results), body)
        if hasattr(app.backend, "client"):
            app.backend.set_chord_size(group_id, size)
        store(app.backend, group_id, [result.id for result in results])


def megabytes_since_now() -> float:
    """Have the largest size of this process noted anew; return its size (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return most_megabytes()


def most_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def store(backend: Any, group_id: str, ids: list[str]) -> None:
    """Store the results of all members, and count those of all but the last."""
    if not hasattr(backend, "client"):
        store_rows(backend, group_id, ids)
        return
    key = backend.get_key_for_group(group_id, ".j")
    for start in range(0, len(ids) - 1, 1000):
        parts = {
            backend.encode([1, id_, "SUCCESS", VALUE]): start + index
            for index, id_ in enumerate(ids[start : min(start + 1000, len(ids) - 1)])
        }
        backend.client.zadd(key, parts)


def store_rows(backend: Any, group_id: str, ids: list[str]) -> None:
    ledger = DatabaseLedger(backend)
    tables = ledger.tables
    session = backend.ResultSession()
    backend.store_result(ids[0], VALUE, "SUCCESS")
    task = backend.task_cls.__table__
    row = session.execute(sa.select(task).where(task.c.task_id == ids[0])).mappings().one()
    rows = [{**row, "task_id": id_} for id_ in ids[1:-1]]
    for each in rows:
        del each["id"]
    session.execute(task.insert(), rows)
    number = counters.how_many(len(ids))
    if is_patched(backend.app) and number:
        session.execute(
            tables.member.insert(), [{"chord_id": group_id, "task_id": id_} for id_ in ids[:-1]]
        )
        full = tables.counter.update().where(tables.counter.c.chord_id == group_id)
        session.execute(full.values(returned=tables.counter.c.expected))
        last = tables.counter.c.number == counters.number_of(ids[-1], number)
        session.execute(full.where(last).values(returned=sa.text("expected - 1")))
    session.commit()
    session.close()


def end_last(app: Any, group_id: str, size: int) -> None:
    """Return the last member; without a ledger on SQL, look as the poller does."""
    backend = app.backend
    ids = [f"{group_id}-{index}" for index in range(size)]
    _, body = canvas(app, group_id, 0)
    names = {"chord": dict(body), "group": group_id, "task": named(app).echo.name}
    request = Context(id=ids[-1], group_index=size - 1, **names)
    backend.mark_as_done(ids[-1], VALUE, request=request)
    if not hasattr(backend, "client") and not is_patched(app):
        unlock = app.tasks["celery.chord_unlock"]
        unlock(group_id, dict(body), result=[(id_, None) for id_ in ids], interval=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
