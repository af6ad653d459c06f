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

from ... import backends, completion, messages
from ..._patch import REDIS, SQL, Patch

logger = logging.getLogger("chordguard")

patch = Patch(
    name="unreadable_members",
    defects={"A16": "the worker cannot read the message of a header task: the chord hangs"},
    backends=(REDIS, SQL),
)


@patch.wraps("celery.worker.consumer.consumer", "Consumer.on_invalid_task")
def on_invalid_task(wrapped: Any, consumer: Any, args: Any, kwargs: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    _count(consumer, *_arguments_of_invalid(*args, **kwargs))
    return handled


@patch.wraps("celery.worker.consumer.consumer", "Consumer.on_decode_error")
def on_decode_error(wrapped: Any, consumer: Any, args: Any, kwargs: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    _count(consumer, *_arguments_of_decode(*args, **kwargs))
    return handled


def _count(consumer: Any, message: Any, exc: Exception) -> None:
    """Count the task of the message as failed, if a chord waits for it."""
    try:
        backend = consumer.app.backend
        if backends.is_supported(backend):
            _fail(backend, message, exc)
    except Exception:
        # The consumer lives on; the chord is settled after chord_timeout.
        logger.exception("A chord may end late: an unreadable task could not be counted")


def _fail(backend: Any, message: Any, exc: Exception) -> None:
    request = messages.request_of(message)
    if request is None:
        request = messages.member_of(backend, message)
    elif not completion.is_awaited(request):
        return
    # Of a message that was delivered twice, another worker may have read the first copy.
    if request is None or backends.ready_states(backend, [request.id]):
        return
    backend.store_result(request.id, exc, states.FAILURE, request=request)
    if request.chord:
        backend.on_chord_part_return(request, states.FAILURE, exc)
    completion.fail_chained(backend, request, exc)


def _arguments_of_invalid(body: Any, message: Any, exc: Exception) -> tuple[Any, Exception]:
    return message, exc


def _arguments_of_decode(message: Any, exc: Exception) -> tuple[Any, Exception]:
    return message, exc
