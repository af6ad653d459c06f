"""Chords as they start: opened in the ledger before the first member is sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from . import settings
from .ledger.model import header_of, pack_data
from .policy import Policy

if TYPE_CHECKING:
    from .ledger.model import Ledger

__all__ = ("Run", "each_frozen", "is_lazy", "open_chord", "run_of", "running")


class Run:
    """One run of `_chord.run`: the group that is its header, and what is to be told later."""

    def __init__(self, header: Any) -> None:
        self.header = header
        #: What a patch keeps until the members of a generator are known.
        self.start: Any = None


_innermost: ContextVar[Run | None] = ContextVar("chordguard_run", default=None)


@contextmanager
def running(header: Any) -> Iterator[None]:
    """Tell `run_of` which chord starts."""
    token = _innermost.set(Run(header))
    try:
        yield
    finally:
        _innermost.reset(token)


def run_of(group_id: str) -> Run | None:
    """Return the run that starts the chord, if it is the innermost."""
    run = _innermost.get()
    return run if run is not None and run.header.options.get("task_id") == group_id else None


def open_chord(ledger: Ledger, group_id: str, results: Any, body: Any) -> None:
    """Open a chord in the ledger; the members of a generator are told later."""
    app = ledger.backend.app
    timeout = Policy.of(app, body).timeout
    first_look = settings.seconds(app, "chord_watchdog_interval") or 30.0
    due = time.time() + (first_look if timeout is None else min(first_look, timeout))
    header = None if is_lazy(results) else header_of(results)
    signatures = None
    if header is not None and settings.get(app, "chord_store_signatures"):
        signatures = pack_data(app, _signatures_of(group_id))
    ledger.open(group_id, header, pack_data(app, body), due, timeout, signatures)


def _signatures_of(group_id: str) -> list[dict[str, Any]]:
    """Return the frozen members of the header, without the body, which each has in its options."""
    run = run_of(group_id)
    members = [dict(member) for member in run.header.tasks] if run is not None else []
    for member in members:
        member["options"] = {k: v for k, v in member["options"].items() if k != "chord"}
    return members


def is_lazy(results: Any) -> bool:
    """Tell whether `results` come from a generator."""
    from celery.utils.functional import _regen

    return isinstance(results, _regen)


def each_frozen(tasks: Any, results: Any) -> Any:
    """Return the tasks of a lazy header, each frozen before it is taken to be sent.

    The results are lazy, too: taking one freezes its task.
    """
    from celery.utils.functional import regen

    def pull() -> Iterator[Any]:
        freezing = iter(results)
        for task in tasks:
            next(freezing, None)
            yield task

    return regen(pull())
