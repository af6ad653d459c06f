"""Functions of Celery that applications replace or override, and that chordguard honours.

People replace `RedisBackend._unpack_chord_result` to tolerate failed members (a recipe of blogs,
LLNL Merlin), subclass a result backend, or have a `celery.chord_unlock` of their own. What they
wrote keeps its effect: here it is found, and named for the report and the doctor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import celery

from ..engine.wrapping import is_ours
from . import backends

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "UNLOCK",
    "Hook",
    "counts_itself",
    "fails_itself",
    "found",
    "is_changed",
    "is_replaced",
    "polls_itself",
    "unpacks_itself",
)

#: Where the functions of Celery itself come from.
_CELERY = Path(celery.__file__).parent

#: The package whose result backends are as good as Celery's own.
_DJANGO_RESULTS = "django_celery_results"

#: The name of Celery's task that polls chords.
UNLOCK = "celery.chord_unlock"

#: Methods that count and end chords. What replaces one of them does that itself.
_COUNTING = ("on_chord_part_return", "apply_chord", "set_chord_size")


@dataclass(frozen=True)
class Hook:
    """A function of Celery that an application has replaced.

    Attributes:
        name: Its name, with what it belongs to.
        effect: What chordguard does about it.
        instead: What to use in its place.
    """

    name: str
    effect: str
    instead: str

    def __str__(self) -> str:
        return f"{self.name} is not Celery's own: {self.effect}; {self.instead}"


def found(app: Celery) -> list[Hook]:
    """Return the hooks that are replaced in the result backend of `app`, and in its tasks.

    It looks at the backend's class: one of a database may connect when it is made.
    """
    try:
        kind, _ = backends.class_and_url(app)
    except Exception:  # noqa: BLE001 - `backends.why_unloadable` tells it
        return []
    return list(_found(app, kind)) if backends.capabilities(kind).keeps_ledger else []


def _found(app: Celery, kind: Any) -> Iterator[Hook]:
    name = kind.__name__
    if unpacks_itself(kind):
        yield Hook(
            f"{name}._unpack_chord_result",
            "what it returns for a member is what the body of a strict chord gets",
            "set chord_propagate_errors = False instead, and chord_error_format if need be",
        )
    for counting in _COUNTING:
        if is_replaced(kind, counting):
            yield Hook(
                f"{name}.{counting}",
                "the chords of this app are left to it, without a ledger",
                "call the method of the base class in it, or remove it",
            )
    if polls_itself(app):
        yield Hook(
            f"the task {UNLOCK}",
            "on a SQL result backend the chords of this app are left to it, without a ledger",
            "give the task another name, or remove it",
        )


def counts_itself(backend: Any) -> bool:
    """Tell whether `backend` has functions of its own that count and end chords."""
    return any(is_replaced(backend, name) for name in _COUNTING)


def unpacks_itself(backend: Any) -> bool:
    """Tell whether `backend` has a function of its own that unpacks the members' results."""
    return is_changed(backend, "_unpack_chord_result")


def fails_itself(backend: Any) -> bool:
    """Tell whether `backend` has a function of its own that fails chords."""
    return is_changed(backend, "chord_error_from_stack")


def polls_itself(app: Celery) -> bool:
    """Tell whether `app` has a task of its own that polls chords."""
    task = app._tasks.get(UNLOCK)
    return task is not None and is_changed(type(task), "run")


def is_changed(backend: Any, name: str) -> bool:
    """Tell whether the method `name` of a backend, or a class of them, is not Celery's own."""
    called = next(_functions(backend, name), None)
    return called is not None and not _is_celerys(called)


def is_replaced(backend: Any, name: str) -> bool:
    """Tell whether Celery's own method `name` is never called for a backend, or a class of them.

    What calls the method of that name, as with `super`, or wraps it, adds to it.
    """
    for function in _functions(backend, name):
        if _is_celerys(function):
            return False
        if not _adds(function, name):
            return True
    return False


def _functions(backend: Any, name: str) -> Iterator[Any]:
    """Yield the functions that stand for a method, the one that is called first; without ours."""
    # Asked with each part: mostly the first one is enough.
    kind = backend if isinstance(backend, type) else type(backend)
    if kind is not backend and name in backend.__dict__:
        yield _beneath(backend.__dict__[name])
    for owner in kind.__mro__:
        if name in owner.__dict__:
            yield _beneath(owner.__dict__[name])


def _beneath(function: Any) -> Any:
    """Return what our own wrappers lie around, and the function of a method."""
    while is_ours(function):
        function = function.__wrapped__
    return getattr(function, "__func__", function)


@cache
def _is_celerys(function: Any) -> bool:
    """Tell whether Celery itself defines a function, and nothing is wrapped around it."""
    if type(function) is not FunctionType:
        return False
    path = Path(function.__code__.co_filename)
    return path.is_relative_to(_CELERY) or _DJANGO_RESULTS in path.parts


@cache
def _adds(function: Any, name: str) -> bool:
    """Tell whether a function calls the one that it stands for."""
    code = getattr(function, "__code__", None)
    return hasattr(function, "__wrapped__") or (code is not None and name in code.co_names)
