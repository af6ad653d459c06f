"""Fail a chord: settle everything that waits for it, and call its errbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import states
from celery._state import get_current_task

from .. import signals
from ..upstream.signatures import chained_after, chord_of, kind_of, request_of, waiting_for
from .errbacks import call_errbacks

__all__ = (
    "fail",
    "fail_chained",
    "is_awaited",
    "return_part",
    "settle",
)


def fail(backend: Any, body: Any, exc: BaseException) -> None:
    """Settle everything that waits for the `body` of a failed chord, and call its errbacks.

    Each result that the body would have given is stored as failed, and each one that is
    itself a member of a chord returns its part there: the innermost body of a body that is
    a chord, every member of a group, every step of a chain. The tasks of a body that is a group
    fail with the cause of `exc`, if it has one.

    Arguments:
        backend: The result backend.
        body: The frozen signature of the body, or the same as data.
        exc: Why the chord failed.
    """
    leaves = list(waiting_for(body))
    signals.chord_failed.send(sender=backend.app, body=body, exception=exc)
    if kind_of(body) == "group" and exc.__cause__ is not None:
        # As from Celery 5.6 on: the tasks of a group fail with the error of the header task.
        exc = exc.__cause__
    call_errbacks(backend, body, exc)
    settle(backend, leaves, exc)


def is_awaited(request: Any) -> bool:
    """Tell whether a chord waits for a task, or for what is chained after it."""
    return bool(request.chord or chord_of(chained_after(request)))


def fail_chained(backend: Any, request: Any, exc: BaseException) -> None:
    """Fail what is chained after a task that does not go on, and return its parts.

    Arguments:
        backend: The result backend.
        request: The request of the task.
        exc: Why it does not go on.
    """
    settle(backend, list(chained_after(request)), exc)


def settle(backend: Any, leaves: Sequence[Mapping[str, Any]], exc: BaseException) -> None:
    """Store the results of simple signatures that never run as failed; return their parts."""
    running = get_current_task()
    for leaf in leaves:
        task_id = leaf.get("options", {}).get("task_id")
        if task_id:
            request = request_of(leaf)
            if running is not None:
                # As by Celery: the errbacks that were called are found from what failed.
                request.children.extend(running.request.children)
            backend.store_result(task_id, exc, states.FAILURE, request=request)
    for leaf in leaves:
        return_part(backend, leaf, exc)


def return_part(backend: Any, signature: Mapping[str, Any], exc: BaseException) -> None:
    """Return a failed part to the chord of which `signature` is a member, if it is one."""
    request = request_of(signature)
    if request.chord and request.id:
        backend.on_chord_part_return(request, states.FAILURE, exc)
