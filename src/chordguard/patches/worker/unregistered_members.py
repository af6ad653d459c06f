"""A header task is not registered on the worker that gets it, and its chord waits for ever.

`Consumer.on_unknown_task` stores the failure, but with a request that it makes up, without the
chord and without the rest of the chain: no part is returned (Redis), what is chained after the
task stays PENDING. Here both are read from the message; where its body cannot be read, the ledger
tells the chord. Unreported upstream.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import states
from celery.exceptions import NotRegistered

from ... import backends, completion, messages
from ..._patch import REDIS, SQL, Patch

logger = logging.getLogger("chordguard")

patch = Patch(
    name="unregistered_members",
    defects={"A11": "a header task is not registered on the worker: the chord hangs"},
    backends=(REDIS, SQL),
)


@patch.wraps("celery.worker.consumer.consumer", "Consumer.on_unknown_task")
def on_unknown_task(wrapped: Any, consumer: Any, args: Any, kwargs: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    backend, message = consumer.app.backend, _message(*args, **kwargs)
    if not backends.is_supported(backend):
        return handled
    try:
        request = messages.request_of(message) or messages.member_of(backend, message)
        if request is None:
            return handled
        exc = NotRegistered(request.task)
        if request.chord:
            backend.on_chord_part_return(request, states.FAILURE, exc)
        completion.fail_chained(backend, request, exc)
    except Exception:
        # The consumer lives on; the watchdog finds the stored failure.
        logger.exception("A chord may end late: an unknown task could not be counted")
    return handled


def _message(body: Any, message: Any, *_: Any, **__: Any) -> Any:
    return message
