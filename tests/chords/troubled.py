"""Chords to which something happens on the way: at the producer, between, or at the worker."""

from __future__ import annotations

import contextlib
import gc
import time
from concurrent import futures
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from celery.signals import before_task_publish
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError
from redis.connection import AbstractConnection

from tests.app_factory import QUEUE_EXPIRES, make_app
from tests.harness import Cluster, wait_until
from tests.tasks import named

if TYPE_CHECKING:
    from collections.abc import Iterator


def key_of(cluster, result, suffix):
    return cluster.app.backend.get_key_for_group(result.parent.id, suffix)


def lose_parts(cluster, result):
    """Have the parts that have come so far never been returned."""
    client = cluster.app.backend.client
    client.delete(key_of(cluster, result, ".j"), key_of(cluster, result, ".d"))


#: What no serializer can encode.
UNSENDABLE = object()


@contextlib.contextmanager
def groups_sent():
    """Yield the ids of the groups of which something is published."""
    ids = set()

    def note(headers, **_):
        ids.update({headers["group"]} - {None})

    before_task_publish.connect(note, weak=False)
    try:
        yield ids
    finally:
        before_task_publish.disconnect(note)


def send_in_vain(canvas, error=EncodeError):
    """Start what cannot be sent; return the ids of the groups that it has."""
    with groups_sent() as ids, pytest.raises(error):
        canvas.apply_async()
    return ids


def broken(t, position):
    members = [t.echo.s(i) for i in range(3)]
    members[position] = t.echo.s(UNSENDABLE)
    return chord(members, t.collect.s())


def raising_header(cluster, count):
    """Return a chord whose header raises after so many tasks; it has to be the current app's."""
    cluster.app.set_current()
    t = cluster.tasks

    def members():
        yield from (t.echo.s(i) for i in range(count))
        raise LookupError("no more")

    return chord(members(), t.collect.s())


#: Routes a message to the queue of the worker.
HEADERS = {"to": "chords"}


@contextlib.contextmanager
def producer_by_headers(clusters, fix, *, patched=True, is_off=False):
    """Run a cluster whose producer sends to an exchange that looks at headers."""
    settings = {"chord_ledger": False, **({fix.setting: False} if is_off else {})}
    with clusters.alone("sqlite", "rabbitmq", patched=patched, settings=settings) as cluster:
        app = make_app(cluster.config, patched)
        name = cluster.stack.name
        app.conf.task_queues = [
            Queue(
                name,
                Exchange(f"{name}-headers", type="headers", auto_delete=True),
                binding_arguments={**HEADERS, "x-match": "all"},
                expires=QUEUE_EXPIRES,
            )
        ]
        app.set_current()
        yield Cluster(cluster.stack, app, cluster.worker, cluster.config)
        app.close()


def routed_by_headers(app):
    t = named(app)
    # The first poll finds it running: the next one has to be routed, too.
    header = [t.echo.s(1).set(headers=HEADERS), t.slow.s(2, 2.0).set(headers=HEADERS)]
    return chord(header, t.collect.s().set(headers=HEADERS))


def late_retry(cluster, gate):
    """Start a chord of which a member's RETRY comes after its SUCCESS; then all return."""
    t = cluster.tasks
    header = [t.retry_late.s(1), t.wait_for_file.s(gate.path, 2)]
    result = chord(header, t.collect.s()).apply_async()
    retried = f"Task tests.retry_late[{result.parent[0].id}] retry"
    wait_until(lambda: retried in cluster.worker.log_text(), what="the stored RETRY")
    gate.open()
    return result


#: Seconds by which the header is held up.
DELAY = 2


def start_delayed(t, way, delay=DELAY):
    """Start a chord with a delay; return what each message has for an ETA, in seconds from now."""
    etas = {}

    def note(sender, headers, **_):
        eta = headers["eta"] and datetime.fromisoformat(headers["eta"]).timestamp() - time.time()
        etas.setdefault(sender, eta)

    canvas = chord([t.echo.s(1), t.echo.s(2)], t.with_eta.s())
    options = {
        "countdown": {"countdown": delay},
        "eta": {"eta": datetime.now(timezone.utc) + timedelta(seconds=delay)},
        "set": {},
    }[way]
    if way == "set":
        canvas = canvas.set(countdown=delay)
    before_task_publish.connect(note, weak=False)
    try:
        return canvas.apply_async(**options), etas
    finally:
        before_task_publish.disconnect(note)


#: Seconds after which a chord that is still being started never will be.
STARTS_WITHIN = 20.0


class Producer:
    """A thread that starts a chord; while it subscribes to a result, another is collected."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        with collected_while_subscribing(), futures.ThreadPoolExecutor(1) as pool:
            starting = pool.submit(self.start)
            try:
                self.result = starting.result(STARTS_WITHIN)
            except futures.TimeoutError:
                self.result = None
                # What the thread waits for is its own.
                self.backend.result_consumer._pubsub._lock.release()

    def start(self) -> Any:
        t = self.cluster.tasks
        # Each thread has a backend of its own.
        self.backend = self.cluster.app.backend
        garbage = t.echo.delay(0)
        garbage.itself = garbage
        self.collected_id = garbage.id
        del garbage
        return chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()


@contextlib.contextmanager
def collected_while_subscribing() -> Iterator[None]:
    """Collect garbage where redis-py sends SUBSCRIBE, and nowhere else."""
    send = AbstractConnection.send_packed_command

    def collect_and_send(connection: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        if b"\nSUBSCRIBE" in b"".join([command] if isinstance(command, bytes) else command):
            gc.collect()
        send(connection, command, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AbstractConnection, "send_packed_command", collect_and_send)
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


def run_again(cluster, result, value, record):
    """Have the first member run once more, with another result."""
    t = cluster.tasks
    first = result.parent.results[0]
    body = t.collect.s(record=record.path).set(task_id=result.id)
    options = {"group_id": result.parent.id, "group_index": 0, "chord": body}
    t.echo.apply_async((value,), task_id=first.id, **options)
    read = cluster.app.backend._get_task_meta_for
    wait_until(lambda: read(first.id)["result"] == value, what="the second result")
