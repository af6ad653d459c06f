from __future__ import annotations

import contextlib
import json
import uuid

import amqp
import pytest
import redis
from celery import chord, group
from celery.signals import after_task_publish, before_task_publish
from kombu.exceptions import EncodeError, OperationalError
from redis.client import Pipeline
from redis.connection import AbstractConnection

from chordguard.upstream.publishing import LONGEST_KEPT, SIZE
from tests.chords.traces import traces
from tests.chords.troubled import UNSENDABLE, send_in_vain
from tests.harness import wait_until

pytestmark = pytest.mark.parametrize("backend_kind", ["redis"])

#: Batches of 16, 32, 64, 128 and 250, and part of another one.
MANY = 520
BATCHES = 6


@contextlib.contextmanager
def round_trips(command=b"LPUSH"):
    """Yield a list of what this process sends to Redis with a certain command in it."""
    sent = []
    send = AbstractConnection.send_packed_command

    def note(connection, packed, *args, **kwargs):
        text = packed if isinstance(packed, bytes) else b"".join(packed)
        if command in text:
            sent.append(text)
        return send(connection, packed, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AbstractConnection, "send_packed_command", note)
        yield sent


@contextlib.contextmanager
def connected(signal, receiver):
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


class Waiting:
    """Messages on Redis that no worker takes."""

    def __init__(self, cluster):
        self.queue = f"{cluster.stack.name}-{uuid.uuid4().hex[:8]}"
        self._prefix = f"{cluster.stack.name}:"
        self._client = redis.Redis.from_url(cluster.stack.broker_url)
        self.tasks = cluster.tasks

    def members(self, count):
        return [self.member(number) for number in range(count)]

    def member(self, number):
        return self.tasks.echo.s(number).set(queue=self.queue)

    def sent(self, queue=None, priority=""):
        """Return the arguments of the members that were sent, in their order."""
        key = f"{self._prefix}{queue or self.queue}{priority}"
        found = [json.loads(text) for text in self._client.lrange(key, 0, -1)]
        return [int(message["headers"]["argsrepr"].strip("[](),")) for message in reversed(found)]


@pytest.fixture
def waiting(with_fix):
    with_fix.app.set_current()
    return Waiting(with_fix)


class TestRoundTrips:
    def test_one_for_each_member(self, without_fix):
        waiting = Waiting(without_fix)
        without_fix.app.set_current()

        with round_trips() as sent:
            group(waiting.members(MANY)).apply_async()

        assert MANY == len(sent)

    @pytest.mark.parametrize("kind", ["group", "chord"])
    def test_one_for_each_batch(self, with_fix, waiting, kind):
        canvas = group(waiting.members(MANY))
        if kind == "chord":
            canvas = chord(canvas, with_fix.tasks.tsum.s())

        with round_trips() as sent:
            canvas.apply_async()

        assert BATCHES == len(sent)
        assert list(range(MANY)) == waiting.sent()

    @pytest.mark.parametrize("count", [1, 2])
    def test_few_are_sent_as_by_celery(self, waiting, count):
        with round_trips() as sent, round_trips(b"WATCH") as watched:
            group(waiting.members(count)).apply_async()

        assert (count, 0) == (len(sent), len(watched))

    @pytest.mark.parametrize("kind", ["group", "chord"])
    def test_results_are_subscribed_to_together(self, with_fix, waiting, kind):
        canvas = group(waiting.members(MANY))
        if kind == "chord":
            canvas = chord(canvas, with_fix.tasks.tsum.s())
        waiting.member(0).apply_async()  # the first one of an app

        with round_trips(b"\r\nSUBSCRIBE\r\n") as sent:
            canvas.apply_async()

        assert 1 <= len(sent) <= BATCHES + 2

    def test_what_an_idle_producer_publishes_is_sent_at_once(self, waiting):
        group(waiting.members(5)).apply_async()
        waiting.member(5).apply_async()

        assert list(range(6)) == waiting.sent()


@pytest.mark.parametrize(("is_on", "most"), [(True, 20), (False, MANY + 50)], ids=["on", "off"])
def test_confirmations_are_awaited_together(clusters, monkeypatch, backend_kind, is_on, most):
    settings = {"broker_transport_options": {"confirm_publish": True}}
    settings["chord_fix_bulk_headers"] = is_on
    cluster = clusters(backend_kind, "rabbitmq", settings=settings)
    t = cluster.tasks
    assert 1 == chord([t.echo.s(1)], t.tsum.s()).apply_async().get(timeout=60)
    waits = []
    wait = amqp.Channel.wait

    def count(channel, *args, **kwargs):
        waits.append(channel)
        return wait(channel, *args, **kwargs)

    monkeypatch.setattr(amqp.Channel, "wait", count)
    result = chord([t.echo.s(number) for number in range(MANY)], t.echo.s()).apply_async()

    assert (0 if is_on else MANY) <= len(waits) <= most
    assert list(range(MANY)) == result.get(timeout=60)


class TestMessages:
    def test_signals_are_sent_for_each(self, waiting):
        seen = []

        def before(**_):
            seen.append("before")

        def after(**_):
            seen.append("after")

        with connected(before_task_publish, before), connected(after_task_publish, after):
            group(waiting.members(10)).apply_async()

        assert ["before", "after"] * 10 == seen

    def test_each_goes_where_it_should(self, with_fix, waiting):
        other = f"{waiting.queue}-other"
        members = waiting.members(30)
        for number, member in enumerate(members):
            if number % 3 == 0:
                member.set(queue=other)
            elif number % 3 == 1:
                member.set(priority=9)

        group(members).apply_async()

        assert [n for n in range(30) if n % 3 == 0] == waiting.sent(other)
        assert [n for n in range(30) if n % 3 == 1] == waiting.sent(priority="\x06\x169")
        assert [n for n in range(30) if n % 3 == 2] == waiting.sent()

    def test_large_chord_completes(self, with_fix):
        t = with_fix.tasks
        header = [t.echo.s(number) for number in range(SIZE + 5)]

        assert sum(range(SIZE + 5)) == chord(header, t.tsum.s()).apply_async().get(timeout=60)

    def test_results_of_a_group_can_be_waited_for(self, with_fix):
        members = [with_fix.tasks.echo.s(number) for number in range(SIZE + 5)]

        assert list(range(SIZE + 5)) == group(members).apply_async().get(timeout=60)

    def test_delayed_one_is_delayed(self, with_fix, waiting):
        group(waiting.members(5)).apply_async(countdown=600)

        client = waiting._client
        for text in client.lrange(f"{waiting._prefix}{waiting.queue}", 0, -1):
            assert json.loads(text)["headers"]["eta"]

    def test_those_before_one_that_cannot_be_sent_are_sent(self, waiting):
        members = waiting.members(7)
        members[5] = waiting.tasks.echo.s(UNSENDABLE).set(queue=waiting.queue)

        with pytest.raises(EncodeError):
            group(members).apply_async()

        assert list(range(5)) == waiting.sent()


class TestGenerators:
    def test_members_are_taken_one_by_one(self, with_fix, waiting):
        taken = []

        def members():
            for number in range(MANY):
                taken.append(number)
                if number == MANY - 1:
                    assert len(waiting.sent()) >= SIZE
                yield waiting.member(number)

        chord(members(), with_fix.tasks.tsum.s(), app=with_fix.app).apply_async()

        assert list(range(MANY)) == taken == waiting.sent()

    def test_one_may_wait_for_those_before(self, with_fix, waiting):
        def members():
            yield from waiting.members(5)
            # Celery takes two more before it sends one.
            wait_until(lambda: len(waiting.sent()) >= 2, 50 * LONGEST_KEPT, "members")
            yield from map(waiting.member, range(5, 8))

        chord(members(), with_fix.tasks.tsum.s(), app=with_fix.app).apply_async()

        assert list(range(8)) == waiting.sent()


class Lost(redis.ConnectionError):
    """A connection that is lost."""


@contextlib.contextmanager
def lost_once(monkeypatch, *, is_executed):
    """Lose the connection at the first transaction, before or after it is executed."""
    execute = Pipeline.execute
    lost = []

    def lose(pipeline, *args, **kwargs):
        is_batch = any(call[0][0] == "LPUSH" for call in pipeline.command_stack)
        if not is_batch or lost:
            return execute(pipeline, *args, **kwargs)
        lost.append(pipeline)
        if is_executed:
            execute(pipeline, *args, **kwargs)
        raise Lost("lost on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", lose)
        yield lost
    assert lost


class TestTrouble:
    @pytest.mark.parametrize("is_executed", [True, False], ids=["answer lost", "command lost"])
    def test_batch_is_sent_once(self, waiting, monkeypatch, is_executed):
        with lost_once(monkeypatch, is_executed=is_executed):
            group(waiting.members(MANY)).apply_async()

        assert list(range(MANY)) == waiting.sent()

    def test_chord_whose_first_batch_is_lost_leaves_nothing(self, with_fix, waiting, monkeypatch):
        monkeypatch.setattr(with_fix.app.conf, "task_publish_retry", False)
        canvas = chord(waiting.members(MANY), with_fix.tasks.tsum.s())

        with lost_once(monkeypatch, is_executed=False):
            ids = send_in_vain(canvas, OperationalError)

        assert [] == waiting.sent()
        assert [] == traces(with_fix, *ids)

    def test_redis_that_refuses_transactions_gets_one_by_one(self, waiting, monkeypatch):
        execute = Pipeline.execute

        def refuse(pipeline, *args, **kwargs):
            if not any(call[0][0] == "LPUSH" for call in pipeline.command_stack):
                return execute(pipeline, *args, **kwargs)
            raise redis.exceptions.NoPermissionError("this user has no permissions to run 'exec'")

        monkeypatch.setattr(Pipeline, "execute", refuse)
        group(waiting.members(20)).apply_async()

        assert list(range(20)) == waiting.sent()
