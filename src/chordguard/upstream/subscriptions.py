"""Subscriptions to results on Redis, made many at once.

Whoever sends a task subscribes to its result, by a command for each, which wakes the server.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

__all__ = ("Subscriptions", "subscriptions", "together")


class Subscriptions:
    """The results of one consumer that are to be subscribed to; another thread may do it."""

    def __init__(self) -> None:
        self._consumer: Any = None
        self._keys: deque[Any] = deque()

    def add(self, consumer: Any, task_id: str) -> bool:
        """Keep a task until all are subscribed to; False where those of another consumer are."""
        if self._consumer not in (None, consumer):
            return False
        self._consumer = consumer
        self._keys.append(consumer._get_key_for_task(task_id))
        return True

    def make(self) -> None:
        """Subscribe to what was kept, by one command."""
        keys = []
        while self._keys:
            keys.append(self._keys.popleft())
        if not keys:
            return
        consumer = self._consumer
        # From 5.7 on all that is done with the connection holds a lock.
        locked = getattr(consumer, "_locked", nullcontext)
        with locked():
            getattr(consumer, "_pending_unsubscribe", set()).difference_update(keys)
            new = [key for key in dict.fromkeys(keys) if key not in consumer.subscribed_to]
            if new:
                consumer.subscribed_to.update(new)
                with consumer.reconnect_on_error():
                    consumer._pubsub.subscribe(*new)


class _Here(threading.local):
    subscriptions: Subscriptions | None = None


_here = _Here()


def subscriptions() -> Subscriptions | None:
    """Return where this thread keeps what it has to subscribe to; None: it does so at once."""
    return _here.subscriptions


@contextmanager
def together() -> Iterator[Subscriptions]:
    """Have this thread subscribe at the end of the block, or when it is told to, by one command."""
    around = _here.subscriptions
    _here.subscriptions = own = Subscriptions()
    try:
        yield own
        own.make()
    except BaseException:
        with suppress(Exception):
            own.make()
        raise
    finally:
        _here.subscriptions = around
