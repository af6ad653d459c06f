"""A lane of the demo: one result backend, with or without the patches.

Each lane has a producer and a worker process, a broker database and a result backend of its
own. Both processes make the same app from the same data.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("BACKENDS", "NOBODYS_QUEUE", "Lane", "make_app", "tasks_of")

#: The result backends of the demo, by the names that the table shows.
BACKENDS = ("Redis", "SQLite")

#: A queue from which no worker takes anything.
NOBODYS_QUEUE = "nobody"

#: Seconds between two polls of a chord; Celery's default is 1.
POLL_INTERVAL = 0.2

#: Seconds that a slow task takes.
SLOW = 0.01


@dataclass(frozen=True)
class Lane:
    """What the processes of one lane have to know.

    Attributes:
        backend: One of :data:`BACKENDS`.
        patched: Whether the app installs the patches.
        folder: Where the lane keeps its files.
        broker_url: The broker.
        result_url: The result backend.
    """

    backend: str
    patched: bool
    folder: str
    broker_url: str
    result_url: str

    @classmethod
    def from_json(cls, text: str) -> Lane:
        """Return the lane that `to_json` wrote down."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Write the lane down for its processes."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        """What the lane is called, in the progress line and in errors."""
        return f"{'patched' if self.patched else 'stock'}-{self.backend.lower()}"

    @property
    def polls(self) -> Path:
        """The file to which the worker adds a chord's group id for each poll."""
        return Path(self.folder) / "polls"


def make_app(lane: Lane) -> Celery:
    """Return the app of `lane`: with the patches or without, else the same."""
    from celery import Celery

    app = Celery(f"demo-{lane.name}", set_as_current=True)
    app.conf.update(
        broker_url=lane.broker_url,
        result_backend=lane.result_url,
        result_chord_retry_interval=POLL_INTERVAL,
        broker_connection_retry_on_startup=True,
        # Celery alone does not know this one.
        chord_propagate_errors=False,
    )
    for function in TASKS:
        app.task(name=function.__name__)(function)
    app.task(name="becomes_group", bind=True)(becomes_group)
    if lane.patched:
        from .. import install_patches

        install_patches(app)
    app.set_default()
    return app


def tasks_of(app: Celery) -> Any:
    """Return the demo's tasks by name: ``tasks_of(app).number``."""
    names = [*(function.__name__ for function in TASKS), "becomes_group"]
    return SimpleNamespace(**{name: app.tasks[name] for name in names})


def number(value: int) -> int:
    """Return `value`: a member that does well."""
    return value


def slow_number(value: int) -> int:
    """Return `value` in a while, so that somebody has to wait for it."""
    time.sleep(SLOW)
    return value


def add(value: int, more: int) -> int:
    """Add: a later step of a chain."""
    return value + more


def fail() -> None:
    """Fail: a member that does not do well."""
    raise ValueError("boom")


def collect(results: Any) -> Any:
    """Return the results of a header: the body."""
    return results


def becomes_group(task: Any, values: list[int]) -> Any:
    """Replace itself by a group."""
    from celery import group

    raise task.replace(group([task.app.tasks["number"].s(value) for value in values]))


TASKS = (number, slow_number, add, fail, collect)
