"""A header that is a generator raises after its first task, and nobody hears of it.

`regen` looks one task ahead of what it is asked for. Asked whether there are tasks at all it meets
the error, which gets lost; the generator has ended, and the body runs with the first task's result
alone (up to 5.2 on Redis with those of any number of tasks). Here the error is raised again, so
that it reaches who starts the chord. Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import Any

from celery import _state

from ...engine.patch import Defect, Patch, patched_apps

patch = Patch(
    "generator_errors",
    Defect("B17", "a generator header raises after its first task: the body runs with it alone"),
)


class _Tasks:
    """The tasks of a generator, which raises its error whenever it is asked for more."""

    def __init__(self, tasks: Iterator[Any]) -> None:
        self._tasks = tasks
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._error is not None:
            raise self._error
        try:
            return next(self._tasks)
        except StopIteration:
            raise
        except Exception as exc:
            self._error = exc
            raise

    def __length_hint__(self) -> int:
        return length_hint(self._tasks)


def app_of_canvas(*_: Any) -> Any:
    """Return the current app if it has the patches; Celery is not asked, it might make one."""
    current = _state._tls.current_app or _state.default_app
    return next((app for app in patched_apps() if app is current), None)


@patch.wraps("celery.canvas", "regen", app_of=app_of_canvas, takes={"it": 0})
def regen(wrapped: Any, instance: Any, args: Any, kwargs: Any, *, it: Any) -> Any:
    return wrapped(_Tasks(it) if isinstance(it, Iterator) else it)
