"""Chords as they start: opened in the ledger before the first member is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .. import settings
from ..engine.patch import BY_NAME, Foundation
from ..ledger.packing import header_of, pack_data
from ..policy import Policy
from ..upstream.signatures import kind_of, result_id

if TYPE_CHECKING:
    from ..ledger.model import Ledger

__all__ = (
    "LazyTasks",
    "Run",
    "entered",
    "foundation",
    "is_lazy",
    "open_chord",
    "run_now",
    "run_of",
)


#: It enters a :class:`Run` where a chord starts, for the patches that act there.
foundation = Foundation("starting")


class Run:
    """One chord that is being started: the group that is its header, and how far it is.

    Patches keep here what they have to know between the functions of Celery that start a chord.
    """

    def __init__(self, around: Run | None = None) -> None:
        #: The run within which this one was entered.
        self.around = around
        #: The group that is the header; None until `_chord.run` is called.
        self.header: Any = None
        #: The id of the chord around this one, as `_chord.run` was told it.
        self.outer_id: str | None = None
        #: `countdown` and `eta` of the chord, until its header takes them.
        self.delay: dict[str, Any] = {}
        #: What a patch keeps until the members of a generator are known.
        self.start: Any = None
        #: Where it is counted, if that is a store of the ledger's own.
        self.ledger: Ledger | None = None
        #: What sends the poller of the chord, as long as it was not sent.
        self.send_poller: Callable[[], None] | None = None
        #: The id of the poller that was sent.
        self.poller: str | None = None
        #: Whether something was handed to the broker, as far as is known.
        self.has_sent = False
        #: Whether the last member comes next, or has been sent.
        self.is_last = False
        #: Whether the last member may have reached the broker.
        self.may_be_whole = False

    @property
    def group_id(self) -> Any:
        """The id of the chord; None before it is frozen."""
        return None if self.header is None else self.header.options.get("task_id")

    @property
    def outer(self) -> Run | None:
        """The run of which this one sends a member."""
        run = self.around
        while run is not None and run.header is None:
            run = run.around
        return run

    def sends(self, *, is_last: bool) -> None:
        """Note that a message may reach the broker from now on; `is_last`: of the last member."""
        self.has_sent = True
        self.may_be_whole = self.may_be_whole or is_last


#: The run that was entered last: `_entered` sets and resets it.
_innermost: ContextVar[Run | None] = ContextVar("chordguard_run", default=None)


@foundation.wraps("celery.canvas", "_chord.apply_async")
def _apply_async(wrapped: Any, _chord: Any, args: Any, kwargs: Any) -> Any:
    with _entered():
        return wrapped(*args, **kwargs)


@foundation.wraps("celery.canvas", "_chord.run", takes={"header": 0, "group_id": BY_NAME})
def _run(wrapped: Any, chord: Any, args: Any, kwargs: Any, *, header: Any, group_id: Any) -> Any:
    with _entered() as run:
        run.header = header
        run.outer_id = group_id or chord.options.get("group_id")
        return wrapped(*args, **kwargs)


@contextmanager
def _entered() -> Iterator[Run]:
    """Enter a run; `_chord.run` takes over that of the `apply_async` which has called it."""
    around = _innermost.get()
    if around is not None and around.header is None:
        yield around
        return
    run = Run(around)
    token = _innermost.set(run)
    try:
        yield run
    finally:
        _innermost.reset(token)


def entered() -> Run | None:
    """Return the run that was entered last, which may not know its header yet."""
    return _innermost.get()


def run_now() -> Run | None:
    """Return the innermost run that knows its header."""
    run = _innermost.get()
    return run if run is None or run.header is not None else run.outer


def run_of(group_id: str) -> Run | None:
    """Return the run that starts the chord, if it is the innermost."""
    run = run_now()
    return run if run is not None and run.group_id == group_id else None


def open_chord(ledger: Ledger, group_id: str, results: Any, body: Any) -> None:
    """Open a chord in the ledger; the members of a generator are told later."""
    app = ledger.backend.app
    timeout = Policy.of(app, body).timeout
    first_look = settings.interval(app)
    due = time.time() + (first_look if timeout is None else min(first_look, timeout))
    header = None if is_lazy(results) else header_of(results)
    signatures = None
    if header is not None and settings.get(app, "chord_store_signatures"):
        signatures = pack_data(app, _signatures_of(group_id))
    packed, body_id = pack_data(app, body), result_id(body)
    ledger.open(group_id, header, packed, due, timeout, signatures, body_id)


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


class LazyTasks:
    """The tasks of a header that is a generator, each frozen when it is taken to be sent.

    Celery freezes copies as it sends them, and the tasks themselves for those results that
    `Backend.apply_chord` is given: their ids agree where the tasks have some before. No task is
    taken earlier than Celery takes it.

    Arguments:
        header: The group, which has been frozen, and so knows what its tasks are frozen with.
    """

    def __init__(self, header: Any) -> None:
        self._tasks = header.tasks
        shared = ("group_id", "chord", "root_id", "parent_id")
        self._options = {key: header.options.get(key) for key in shared}
        #: The results of the tasks that were taken.
        self.results: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def __iter__(self) -> Iterator[Any]:
        self.results = []
        for index, task in enumerate(self._tasks):
            if not _is_empty_chain(task):
                self.results.append(task.freeze(group_index=index, **self._options))
            yield task


def _is_empty_chain(task: Any) -> bool:
    """Tell whether `task` gives no result; Celery passes it over (from 5.7 on)."""
    return kind_of(task) == "chain" and not task.tasks
