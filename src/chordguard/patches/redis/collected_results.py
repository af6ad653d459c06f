"""Starting a chord never returns when garbage is collected while redis-py holds its lock.

Whoever sends a task subscribes to its result, and redis-py does so under the lock of its
`PubSub`. When Python collects garbage in there, `AsyncResult.__del__` unsubscribes on the same
connection: redis-py 5.3 to 6.3 then waits for a lock that its own thread holds, for ever. Chords
leave such garbage, since the results of a group are part of a cycle. Here what comes in between
waits until the connection is free. https://github.com/celery/celery/issues/10477, mended in
Celery 5.7 (`ResultConsumer.cancel_for`) and in redis-py 6.4, whose lock is reentrant.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7

logger = logging.getLogger("chordguard")

patch = Patch(
    "collected_results",
    Defect(
        "C9", "starting a chord, or sending any task, never returns now and then", until=celery_5_7
    ),
    driver="redis",
    driver_versions=((5, 3), (6, 4)),
)


class _Connection(threading.local):
    """What this thread does with the connections of the apps for announced results."""

    def __init__(self) -> None:
        self.is_in_use = False
        #: Calls of `cancel_for` that came while it was.
        self.put_off: deque[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = deque()


_connection = _Connection()


@patch.wraps("celery.backends.redis", "ResultConsumer.reconnect_on_error")
@contextmanager
def use(wrapped: Any, _consumer: Any, args: Any, kwargs: Any) -> Iterator[None]:
    is_outermost = not _connection.is_in_use
    _connection.is_in_use = True
    try:
        with wrapped(*args, **kwargs):
            yield
        if is_outermost:
            _cancel_put_off()
    finally:
        _connection.is_in_use = not is_outermost


@patch.wraps("celery.backends.redis", "ResultConsumer.cancel_for")
def cancel_for(wrapped: Any, consumer: Any, args: Any, kwargs: Any) -> None:
    # Without a connection nothing is sent.
    if _connection.is_in_use and consumer._pubsub:
        _connection.put_off.append((wrapped, args, kwargs))
    else:
        wrapped(*args, **kwargs)


def _cancel_put_off() -> None:
    while _connection.put_off:
        cancel, args, kwargs = _connection.put_off.popleft()
        try:
            cancel(*args, **kwargs)
        except Exception:
            # Nobody waits for these results any more: what was being done has gone well.
            logger.warning("chordguard: cannot unsubscribe from a result", exc_info=True)
