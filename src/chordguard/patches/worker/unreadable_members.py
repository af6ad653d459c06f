"""The worker cannot read the message of a header task, and its chord waits for ever.

The serializer is not accepted (`ContentDisallowed`), an `eta` makes no sense (`InvalidTaskError`),
the body is broken, or compressed or pickled with something that is not there: the consumer logs
the message and drops it. No result is stored, no part returned. Here such a member counts as failed
with that error. A body that cannot be read stays unread; the ledger tells which chord waits for the
task, but for a step of a chain before the last. Unreported upstream.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import states

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...lifecycle.failing import fail_chained, is_awaited
from ...lifecycle.unrun import member_of, request_of
from ...upstream import backends
from ...upstream.results import ready_states

logger = logging.getLogger("chordguard")

patch = Patch(
    "unreadable_members",
    Defect("A16", "the worker cannot read the message of a header task: the chord hangs"),
    backends=(REDIS, SQL, DJANGO),
)


@patch.wraps(
    "celery.worker.consumer.consumer", "Consumer.on_invalid_task", takes={"message": 1, "exc": 2}
)
def on_invalid_task(
    wrapped: Any, consumer: Any, args: Any, kwargs: Any, *, message: Any, exc: Any
) -> Any:
    handled = wrapped(*args, **kwargs)
    _count(consumer, message, exc)
    return handled


@patch.wraps(
    "celery.worker.consumer.consumer", "Consumer.on_decode_error", takes={"message": 0, "exc": 1}
)
def on_decode_error(
    wrapped: Any, consumer: Any, args: Any, kwargs: Any, *, message: Any, exc: Any
) -> Any:
    handled = wrapped(*args, **kwargs)
    _count(consumer, message, exc)
    return handled


def _count(consumer: Any, message: Any, exc: Exception) -> None:
    """Count the task of the message as failed, if a chord waits for it."""
    try:
        backend = consumer.app.backend
        if backends.capabilities(backend).keeps_ledger:
            _fail(backend, message, exc)
    except Exception:
        # The consumer lives on; the chord is settled after chord_timeout.
        logger.exception(
            "Could not count a task whose message is unreadable; its chord may end late"
        )


def _fail(backend: Any, message: Any, exc: Exception) -> None:
    request = request_of(message)
    if request is None:
        request = member_of(backend, message)
    elif not is_awaited(request):
        return
    # Of a message that was delivered twice, another worker may have read the first copy.
    if request is None or ready_states(backend, [request.id]):
        return
    backend.store_result(request.id, exc, states.FAILURE, request=request)
    if request.chord:
        backend.on_chord_part_return(request, states.FAILURE, exc)
    fail_chained(backend, request, exc)
