"""The safety net of a chord on SQL: a late and slow `celery.chord_unlock`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from .. import settings
from ..policy import Policy

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "UNLOCK_ID",
    "first_delay",
    "next_delay",
    "send_unlock",
    "unlock_id",
)

#: The longest time, in seconds, between two looks of the safety net.
SLOWEST = 300.0

#: The keyword argument that takes the id of a poller to where it is sent.
UNLOCK_ID = "chordguard_task_id"

_UNLOCK = UUID("b3c1cf9c-6b5c-4a8e-9a55-7d0f0e2f6a10")


def unlock_id(group_id: str) -> str:
    """Return the id of the `celery.chord_unlock` of a counted chord.

    It says that the chord is counted, and lets the poller of a chord be found.
    """
    return str(uuid5(_UNLOCK, group_id))


def send_unlock(
    backend: Any, group_id: str, results: Iterable[Any], body: Any, options: Mapping[str, Any]
) -> None:
    """Send the safety net of a chord on SQL, as late as the settings say.

    Arguments:
        backend: The result backend.
        group_id: The chord.
        results: The results of its header.
        body: Its body.
        options: What `Backend.apply_chord` was given beside them.
    """
    options = dict(options)
    countdown = max(first_delay(backend.app, body), options.pop("countdown", 0) or 0)
    options[UNLOCK_ID] = unlock_id(group_id)
    header = backend.app.GroupResult(group_id, list(results))
    backend.fallback_chord_unlock(header, body, countdown=countdown, **options)


def first_delay(app: Celery, body: Any) -> float:
    """Return the seconds before the safety net looks at a chord for the first time."""
    delay = settings.seconds(app, "chord_unlock_first_delay")
    timeout = Policy.of(app, body).timeout
    return delay if timeout is None else min(delay, timeout)


def next_delay(app: Celery, retries: int, body: Any = None) -> float:
    """Return the seconds between look number `retries` (from 0) of the safety net and the next.

    They double with each look, up to :data:`SLOWEST`.
    """
    return min(SLOWEST, max(1.0, first_delay(app, body)) * 2.0 ** min(retries, 16))
