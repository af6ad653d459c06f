"""The announcements of results that Redis sends to processes that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

from .results import read_metas

__all__ = (
    "announce",
    "silence",
)


def silence(backend: Any, awaited: Any, results: Sequence[Any]) -> list[Any]:
    """Tell a Redis `backend` not to announce those of `results` that nobody else waits for.

    Arguments:
        backend: The result backend.
        awaited: The result that somebody waits for, which stays announced.
        results: Its parents.

    Returns:
        The results that are not announced any more; :func:`announce` takes them.
    """
    consumer = backend.result_consumer
    silenced = [
        result
        for result in results
        if backend.get_key_for_task(result.id) in consumer.subscribed_to
        and all(waiter is result for waiter in _waiting_for(backend, result.id))
    ]
    keys = {backend.get_key_for_task(result.id) for result in silenced}
    if keys:
        kept = backend.get_key_for_task(awaited.id)
        with _consuming(consumer) as pubsub:
            is_alone = consumer.subscribed_to <= keys | {kept}
            consumer.subscribed_to.difference_update(keys)
            if is_alone and type(consumer.drainer) is _default_drainer():
                # Leave behind, with the connection, all that has been announced so far.
                consumer._pubsub = backend.client.pubsub(ignore_subscribe_messages=True)
                consumer._pubsub.subscribe(kept)
                consumer.subscribed_to.add(kept)
                pubsub.close()
            else:
                pubsub.unsubscribe(*keys)
        # It may have become ready between the two connections.
        for _, meta in read_metas(backend, [awaited.id]):
            consumer.on_state_change(backend.meta_from_decoded(meta), None)
    return silenced


def _default_drainer() -> type:
    """Return the class that reads announcements while somebody waits, not all the time."""
    from celery.backends.asynchronous import Drainer

    drainer: type = Drainer
    return drainer


def announce(backend: Any, results: Sequence[Any]) -> None:
    """Tell a Redis `backend` to announce those of `results` that are not ready yet."""
    consumer = backend.result_consumer
    keys = [backend.get_key_for_task(result.id) for result in results if result._cache is None]
    if keys:
        with _consuming(consumer) as pubsub:
            consumer.subscribed_to.update(keys)
            pubsub.subscribe(*keys)


@contextmanager
def _consuming(consumer: Any) -> Iterator[Any]:
    """Hold the consumer's connection, which from 5.7 on is guarded by a lock."""
    with getattr(consumer, "_locked", nullcontext)(), consumer.reconnect_on_error():
        yield consumer._pubsub


def _waiting_for(backend: Any, task_id: str) -> Iterator[Any]:
    """Yield the result objects that wait to be told of `task_id`."""
    for mapping in backend._pending_results:
        waiter = mapping.get(task_id)
        if isinstance(waiter, (dict, WeakValueDictionary)):  # 5.7: several, by identity
            yield from waiter.values()
        elif waiter is not None:
            yield waiter
