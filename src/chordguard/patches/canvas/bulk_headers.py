"""To start a chord takes one round trip to the broker for each member.

`group._apply_tasks` publishes them one by one, and waits for the broker each time. Here what its
producer publishes is sent in batches, where the broker lets that be (see
:mod:`chordguard.upstream.publishing`). Nothing else changes: members are taken one by one, and
what Celery does with each, such as its signals, is done when it is taken.
https://github.com/celery/celery/issues/1803 https://github.com/celery/celery/issues/6973
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ...engine.patch import Defect, Patch
from ...upstream import publishing
from ...upstream.subscriptions import subscriptions, together

patch = Patch(
    "bulk_headers",
    Defect("C10", "starting a chord or a group waits for the broker once for each member"),
)


def _app_of_batch(producer: Any, *_: Any) -> Any:
    batch = publishing.batch_of(producer)
    return None if batch is None else batch.app


@patch.wraps("celery.canvas", "group._apply_tasks", takes={"producer": 1, "app": 2})
def apply_tasks(
    wrapped: Any, group: Any, args: Any, kwargs: Any, *, producer: Any, app: Any
) -> Iterator[Any]:
    with (app or group.app).producer_or_acquire(producer) as acquired:
        given = {**kwargs, "producer": acquired}
        if len(args) > 1:
            del given["producer"]
            args = (args[0], acquired, *args[2:])
        # Another iterable than a list may take its time from one task to the next.
        is_lazy = not isinstance(group.tasks, (list, tuple))
        with (
            together() as subscriptions,
            publishing.batches(
                group.app, acquired, is_lazy=is_lazy, before_each=subscriptions.make
            ) as batch,
        ):
            for result in wrapped(*args, **given):
                if batch.is_full:
                    batch.flush()
                yield result


@patch.wraps("celery.backends.redis", "RedisBackend.apply_chord")
def apply_chord(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    # It makes a GroupResult, which subscribes to each member.
    with together():
        return wrapped(*args, **kwargs)


@patch.wraps("celery.backends.redis", "ResultConsumer._consume_from", takes={"task_id": 0})
def consume_from(wrapped: Any, consumer: Any, args: Any, kwargs: Any, *, task_id: Any) -> None:
    kept = subscriptions()
    if kept is None or not kept.add(consumer, task_id):
        wrapped(*args, **kwargs)


@patch.wraps("kombu.messaging", "Producer._publish", app_of=_app_of_batch)
def publish(wrapped: Any, producer: Any, args: Any, kwargs: Any) -> Any:
    batch = publishing.batch_of(producer)
    if batch is None:
        return wrapped(*args, **kwargs)
    return batch.add(partial(wrapped, *args, **kwargs))
