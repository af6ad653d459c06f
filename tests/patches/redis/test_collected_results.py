from __future__ import annotations

import contextlib
import gc
from concurrent import futures
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from redis.connection import AbstractConnection

from tests.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Cluster

ACTS_IN_PRODUCER = True

pytestmark = pytest.mark.parametrize("backend_kind", ["redis"])

#: Seconds after which a chord that is still being started never will be.
STARTS_WITHIN = 5.0


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


def subscribers(producer: Producer) -> int:
    """Return how many connections Redis tells of the result that was collected."""
    channel = producer.backend.get_key_for_task(producer.collected_id)
    ((_, number),) = producer.backend.client.pubsub_numsub(channel)
    return number


def test_chord_is_never_started(without_fix):
    assert Producer(without_fix).result is None


def test_chord_is_started(with_fix):
    assert with_fix.run(Producer(with_fix).result) == [1, 2]


def test_what_was_collected_is_not_announced_any_more(with_fix):
    producer = Producer(with_fix)

    wait_until(lambda: subscribers(producer) == 0, what="unsubscription")
