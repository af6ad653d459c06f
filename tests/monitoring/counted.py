"""The tasks of the tests, in workers that count the chords that they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import tasks

if TYPE_CHECKING:
    from celery import Celery


def register(app: Celery) -> None:
    # Not before the worker has its environment.
    from chordguard.metrics import count_chords

    tasks.register(app)
    count_chords(app)
