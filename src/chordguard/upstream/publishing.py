"""Messages that go to the broker many at once: one round trip for a batch of them.

Celery publishes the members of a group one by one, and waits for the broker each time. Here what
its producer is given is kept until there is a batch of it, and is sent as kombu sends it, but that

- on Redis the commands are collected in one transaction. It leaves a mark, so that it is not
  executed again when an answer was lost (`Producer.batch` of kombu 5.7 gives up then);
- on RabbitMQ with `confirm_publish` the confirmations of a batch are awaited together.

Any other broker, and a Redis that refuses the transaction, gets the messages one by one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Batch", "batch_of", "batches", "when_sent")

#: How many messages a batch has: the first one few, so that workers soon have something to do,
#: each of the next ones twice as many, up to `SIZE`.
FIRST_SIZE = 16
SIZE = 250

#: With fewer messages it takes no fewer round trips to send them together.
FEW = 3

#: Seconds for which messages are kept at most while the next one is waited for.
LONGEST_KEPT = 0.1

#: Seconds for which the mark of a transaction on Redis lives.
MARK_SECONDS = 600

#: The number of the last message that the broker confirmed, by channel.
_confirmed: MutableMapping[Any, int] = WeakKeyDictionary()

#: The attribute of a producer that is the batch which it fills.
BATCH = "_chordguard_batch"


def batch_of(producer: Any) -> Batch | None:
    """Return the batch that a `producer` fills now."""
    return getattr(producer, BATCH, None)


def when_sent(producer: Any, note: Callable[[], None]) -> None:
    """Call `note` just before what a `producer` is given next goes to the broker."""
    batch = batch_of(producer)
    if batch is None:
        note()
    else:
        batch.notes.append(note)


@contextmanager
def batches(
    app: Celery, producer: Any, *, is_lazy: bool, before_each: Callable[[], None]
) -> Iterator[Batch]:
    """Have what a `producer` publishes in the block sent in batches, all of it by its end.

    Arguments:
        app: Whose policy of retries holds.
        producer: A producer of kombu, which this thread has for itself.
        is_lazy: Whether the block may wait for something between two messages; those that it has
            published are sent meanwhile.
        before_each: Called before each batch goes to the broker.
    """
    batch = Batch(app, producer, before_each)
    around = batch_of(producer)
    setattr(producer, BATCH, batch)
    try:
        with batch.sent_in_time() if is_lazy else nullcontext():
            yield batch
        batch.flush()
    except BaseException:
        # What was published before an error is sent, as by Celery.
        with suppress(Exception):
            batch.flush_once()
        raise
    finally:
        setattr(producer, BATCH, around)


class Batch:
    """Messages of one producer that were published and are not sent yet."""

    def __init__(self, app: Celery, producer: Any, before_each: Callable[[], None]) -> None:
        self.app = app
        self.producer = producer
        #: What is to be called before the messages go to the broker, once.
        self.notes: list[Callable[[], None]] = []
        self._before_each = before_each
        self._size = FIRST_SIZE
        self._messages: list[Callable[[], Any]] = []
        self._lock = threading.RLock()
        self._is_flushing = False
        self._has_failed = False
        self._since = 0.0
        #: By which the broker knows the transaction that was executed last.
        self._mark = f"chordguard-batch-{uuid4()}"
        self._number = self._tried = 0
        self._is_refused = False

    @property
    def is_full(self) -> bool:
        """Whether it has as many messages as are sent at once."""
        return len(self._messages) >= self._size

    def add(self, publish: Callable[[], Any]) -> Any:
        """Keep a message, which `publish` hands to the broker, until the batch is flushed."""
        with self._lock:
            if self._is_flushing:
                return publish()
            if not self._messages:
                self._since = time.monotonic()
            self._messages.append(publish)
            return None

    def flush(self) -> None:
        """Send what is kept, with the app's policy of retries.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached.
        """
        conf = self.app.conf
        send = self._send
        if conf.task_publish_retry:
            policy = {**conf.task_publish_retry_policy}
            send = self.producer.connection.ensure(self.producer, self._send, **policy)
        self._flush(send)

    def flush_once(self) -> None:
        """Send what is kept unless that has failed before."""
        if not self._has_failed:
            self._flush(self._send)

    def _flush(self, send: Callable[[], None]) -> None:
        with self._lock:
            if not self._messages:
                return
            self._is_flushing = True
            self._number += 1
            try:
                with self.producer.connection._reraise_as_library_errors():
                    send()
            except BaseException:
                self._has_failed = True
                raise
            finally:
                self._is_flushing = False
            self._messages.clear()
            self._size = min(2 * self._size, SIZE)

    @contextmanager
    def sent_in_time(self) -> Iterator[None]:
        """Send what is kept for long from another thread while the block runs."""
        is_over = threading.Event()
        thread = threading.Thread(
            target=self._send_in_time, args=(is_over,), name="chordguard-batches", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _send_in_time(self, is_over: threading.Event) -> None:
        while not is_over.wait(LONGEST_KEPT):
            with self._lock:
                if self._messages and time.monotonic() - self._since >= LONGEST_KEPT:
                    # Whoever flushes next tries again.
                    with suppress(Exception):
                        self._flush(self._send)
                        self._has_failed = False

    def _send(self) -> None:
        """Try once to send what is kept; what is certain to be sent is kept no longer."""
        # It connects: what fails before that has sent nothing.
        channel = self.producer.channel
        self._before_each()
        while self.notes:
            self.notes.pop(0)()
        with _set(self.producer, "maybe_declare", _once(self.producer.maybe_declare)):
            if len(self._messages) < FEW or self._is_refused:
                self._send_each()
            elif _is_on_redis(channel):
                self._send_to_redis(channel)
            elif _is_confirmed(channel):
                self._send_and_wait(channel)
            else:
                self._send_each()

    def _send_each(self) -> None:
        while self._messages:
            self._messages[0]()
            del self._messages[0]

    def _send_to_redis(self, channel: Any) -> None:
        import redis

        with channel.conn_or_acquire() as client, client.pipeline(transaction=True) as pipe:
            # kombu gives some commands the prefix of an app, and not these.
            mark = f"{getattr(client, 'global_keyprefix', '')}{self._mark}"
            if self._tried == self._number == int(client.get(mark) or 0):
                self._messages.clear()  # the answer was lost
                return
            self._tried = self._number
            try:
                # Redis clients do not execute a transaction again on another connection that has
                # watched something on the one that was lost.
                pipe.watch(mark)
                pipe.multi()
                with _set(
                    channel, "conn_or_acquire", lambda *_: nullcontext(_Collector(client, pipe))
                ):
                    for publish in self._messages:
                        publish()
                pipe.execute_command("SETEX", mark, MARK_SECONDS, self._number)
                answers = pipe.execute(raise_on_error=False)
            except redis.WatchError as exc:
                raise redis.ConnectionError("lost the connection in a transaction") from exc
            except redis.ResponseError:
                # A right is missing, or memory: nothing of it was executed.
                self._is_refused = True
                self._send_each()
                return
        self._messages.clear()
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer

    def _send_and_wait(self, channel: Any) -> None:
        import amqp

        if channel not in _confirmed:
            # Its confirmation tells how many messages the channel has had.
            _note_confirmations(channel)
            self._messages[0]()
            del self._messages[0]
        waiting = dict(enumerate(self._messages, _confirmed[channel] + 1))
        refused: list[int] = []
        patience = None

        def settle(number: int, is_multiple: bool) -> None:
            for each in [n for n in waiting if n <= number] if is_multiple else [number]:
                waiting.pop(each, None)

        def refuse(number: int, is_multiple: bool) -> None:
            refused.append(number)
            settle(number, is_multiple)

        def send(*args: Any, **kwargs: Any) -> Any:
            nonlocal patience
            patience = kwargs.get("confirm_timeout") or kwargs.get("timeout") or patience
            return channel._basic_publish(*args, **kwargs)

        channel.events["basic_ack"].add(settle)
        channel.events["basic_nack"].add(refuse)
        try:
            with _set(channel, "basic_publish", send):
                for publish in self._messages:
                    publish()
            while waiting:
                if channel.connection is None:
                    raise amqp.RecoverableConnectionError("connection already closed")
                channel.connection.drain_events(timeout=patience)
        finally:
            self._messages[:] = waiting.values()
            channel.events["basic_ack"].discard(settle)
            channel.events["basic_nack"].discard(refuse)
        if refused:
            raise amqp.exceptions.MessageNacked


def _note_confirmations(channel: Any) -> None:
    def note(number: int, _: bool) -> None:
        _confirmed[channel] = max(_confirmed[channel], number)

    _confirmed[channel] = 0
    channel.events["basic_ack"].add(note)
    channel.events["basic_nack"].add(note)


class _Collector:
    """A client of Redis that puts what publishes a message into a pipeline, and does the rest."""

    def __init__(self, client: Any, pipe: Any) -> None:
        self._client = client
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(
            self._pipe if name in ("lpush", "pexpire", "publish") else self._client, name
        )

    @contextmanager
    def pipeline(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield a pipeline that collects, too; kombu 5.7 has one for queues that expire."""
        with self._client.pipeline(*args, **kwargs) as inner:
            yield _Collector(inner, self._pipe)


def _once(declare: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that declares each queue or exchange once."""
    declared: set[int] = set()

    def declare_once(entity: Any, *args: Any, **kwargs: Any) -> Any:
        if id(entity) not in declared:
            declare(entity, *args, **kwargs)
            declared.add(id(entity))

    return declare_once


def _is_on_redis(channel: Any) -> bool:
    redis = sys.modules.get("kombu.transport.redis")
    return redis is not None and isinstance(channel, redis.Channel)


def _is_confirmed(channel: Any) -> bool:
    amqp = sys.modules.get("amqp")
    return (
        amqp is not None
        and isinstance(channel, amqp.Channel)
        and bool(getattr(channel.connection, "confirm_publish", False))
    )


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute for the block."""
    is_own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
