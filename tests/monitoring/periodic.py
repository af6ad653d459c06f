"""The tasks of the tests, and a check of their chords by beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chordguard import setup_periodic_monitoring
from tests import tasks

if TYPE_CHECKING:
    from celery import Celery

#: Seconds between two checks.
EVERY = 0.5


def register(app: Celery) -> None:
    tasks.register(app)
    setup_periodic_monitoring(app, every=EVERY, asks_workers=False, queue=queue_of(app.main))


def queue_of(name: str) -> str:
    """Return the queue of the checks of the app with that name."""
    return f"{name}-checks"
