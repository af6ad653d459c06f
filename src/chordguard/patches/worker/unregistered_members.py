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

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...lifecycle.failing import fail_chained
from ...lifecycle.unrun import member_of, request_of
from ...upstream import backends

logger = logging.getLogger("chordguard")

patch = Patch(
    "unregistered_members",
    Defect("A11", "a header task is not registered on the worker: the chord hangs"),
    backends=(REDIS, SQL, DJANGO),
)


@patch.wraps("celery.worker.consumer.consumer", "Consumer.on_unknown_task", takes={"message": 1})
def on_unknown_task(wrapped: Any, consumer: Any, args: Any, kwargs: Any, *, message: Any) -> Any:
    handled = wrapped(*args, **kwargs)
    backend = consumer.app.backend
    if not backends.capabilities(backend).keeps_ledger:
        return handled
    try:
        request = request_of(message) or member_of(backend, message)
        if request is None:
            return handled
        exc = NotRegistered(request.task)
        if request.chord:
            backend.on_chord_part_return(request, states.FAILURE, exc)
        fail_chained(backend, request, exc)
    except Exception:
        # The consumer lives on; the watchdog finds the stored failure.
        logger.exception("Could not count an unregistered task; its chord may end late")
    return handled
