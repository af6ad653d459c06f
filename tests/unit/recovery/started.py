"""Chords that were started, on a ledger without others and a broker in memory."""

from __future__ import annotations

import contextlib
import time

from celery.app.task import Context
from celery.utils import uuid
from kombu.exceptions import OperationalError

from chordguard.ledger.packing import pack_data
from chordguard.ledger.redis import RedisLedger
from chordguard.ledger.sql import DatabaseLedger
from chordguard.lifecycle import counting
from tests import tasks
from tests.harness import create_result_tables, delete_keys
from tests.unit.ledger.chords import LATER, app_on


class Chord:
    """A chord that was started, of which nothing has run."""

    def __init__(self, ledger, body=None, size=2, header=None, **options):
        self.ledger = ledger
        self.app = ledger.backend.app
        self.group_id = uuid()
        self.ids = [uuid() for _ in range(size)]
        self.body = tasks.named(self.app).collect.s() if body is None else body
        self.body.set(task_id=uuid())
        options = {"due": time.time() + LATER, "timeout": None, **options}
        is_known = header is None
        ledger.open(
            self.group_id,
            self.ids if is_known else None,
            pack_data(self.app, self.body),
            **options,
        )
        if is_known and isinstance(ledger, RedisLedger):
            ledger.set_size(self.group_id, size)

    def store(self, index, state="SUCCESS"):
        """Store the result of a member, as a worker does that dies right after it."""
        result = index if state == "SUCCESS" else ValueError("boom")
        self.app.backend.store_result(self.ids[index], result, state)
        return result, state

    def count(self, index):
        """Count a member."""
        return self._count(index, index, "SUCCESS")

    def end(self, index, state="SUCCESS"):
        """Store the result of a member and count it."""
        return self._count(index, *self.store(index, state))

    def _count(self, index, result, state):
        request = Context(id=self.ids[index], task=f"{tasks.PREFIX}echo", group_index=index)
        part = counting.part_of(self.ledger, request, state, result)
        return self.ledger.count(self.group_id, part)

    @property
    def record(self):
        return self.ledger.read(self.group_id)

    @property
    def outcome(self):
        """The state and the result that the body has without having run."""
        found = self.app.AsyncResult(self.body.id)
        return found.state, found.result

    def published(self):
        """Return what the bodies get that were published since the last call."""
        return published(self.app)


def published(app):
    """Take the messages off the broker; return the first argument of each."""
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue(app.main)
        found = []
        while True:
            try:
                message = queue.get_nowait()
            except queue.Empty:
                return found
            message.ack()
            found.append(message.payload[0][0])


@contextlib.contextmanager
def empty_ledger(kind, servers, folder):
    """Give an empty ledger on an app without patches, whose broker is in memory."""
    name = f"cg-{uuid()}"
    if kind == "redis":
        url = servers.get("redis").url
        backend = app_on(url, name).backend
        try:
            yield RedisLedger(backend)
        finally:
            delete_keys(url, f"{name}:*")
            backend.client.connection_pool.disconnect()
    else:
        url = f"sqlite:///{folder / 'results.sqlite'}"
        create_result_tables(url)
        ledger = DatabaseLedger(app_on(f"db+{url}", name).backend)
        assert ledger.is_usable()
        yield ledger


@contextlib.contextmanager
def broker_away(app):
    """Keep `app` from publishing, as if the broker were away."""

    def refuse(*_, **__):
        raise OperationalError("the broker is away")

    send, app.amqp.send_task_message = app.amqp.send_task_message, refuse
    app.conf.task_publish_retry = False
    try:
        yield
    finally:
        app.amqp.send_task_message = send
