"""Celery refuses chords on `rpc://` and without a result backend, and others lose results.

There the worker that would end a chord cannot read what its members gave. A store whose results
expire, are evicted, or are gone after a restart leaves chords without an end. With
``chord_ledger_url`` parts are counted in a database or Redis of the ledger's own, beside any result
backend, and bring their results along: the chord ends from these alone.
https://github.com/celery/celery/issues/4575
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import wrapt
from celery import states
from kombu.exceptions import EncodeError

from ...engine.patch import Defect, Patch, Wrapper
from ...engine.versions import Version, celery_5_3, celery_5_5, celery_5_7
from ...errors import OUTSIDE, ChordEnded
from ...ledger.access import ledger_of, ledger_on, missing_ledger
from ...ledger.model import ChordUnknown
from ...ledger.packing import header_of
from ...lifecycle import counting, incrementing, starting
from ...log import warn_once
from ...upstream import backends, stores
from ...upstream.signatures import giving, kind_of

patch = Patch(
    "own_ledger",
    Defect("E1", "rpc:// and no result backend: Celery refuses chords"),
    Defect("E2", "the result store loses the result of a member: its chord hangs, or fails"),
    needs_setting=stores.NAME,
)

BASE = ("celery.backends.base", "Backend", None)
KEY_VALUE = ("celery.backends.base", "BaseKeyValueStoreBackend", None)
DISABLED = ("celery.backends.base", "DisabledBackend", None)
RPC = ("celery.backends.rpc", "RPCBackend", None)
REDIS = ("celery.backends.redis", "RedisBackend", None)
DATABASE = ("celery.backends.database", "DatabaseBackend", None)
DJANGO = ("django_celery_results.backends.database", "DatabaseBackend", None)
GCS = ("celery.backends.gcs", "GCSBackend", celery_5_5)


def wraps(
    method: str, kinds: Iterable[tuple[str, str, Version | None]], **takes: int
) -> Callable[[Wrapper], Wrapper]:
    """Declare that the decorated function wraps a method of several backends."""

    def declare(wrapper: Wrapper) -> Wrapper:
        for module, kind, since in kinds:
            is_optional = module != BASE[0]
            name = f"{kind}.{method}"
            patch.wraps(module, name, takes=takes, since=since, is_optional=is_optional)(wrapper)
        return wrapper

    return declare


@wraps("ensure_chords_allowed", (RPC, DISABLED))
def ensure_chords_allowed(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> None:
    if not stores.has_store(backend.app):
        wrapped(*args, **kwargs)


@wraps("_apply_chord_incr", (KEY_VALUE,), header_result_args=0, body=1)
@wraps("apply_chord", (BASE, REDIS, DATABASE, DJANGO), header_result_args=0, body=1)
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    run = starting.run_of(header_result_args[0])
    try:
        is_open = _open(backend, run, header_result_args, body)
    except Exception:
        if not backends.takes_chords(backend):
            raise  # nobody else would count it
        warn_once(
            "Chord %s is left to the result backend: writing it to the ledger failed",
            header_result_args[0],
        )
        is_open = False
    return None if is_open else wrapped(*args, **kwargs)


def _open(backend: Any, run: Any, header: tuple[str, Any], body: Any) -> bool:
    """Open a chord in the ledger; return False where chords are not counted there."""
    group_id, results = header
    if not stores.has_store(backend.app) or incrementing.is_claim(group_id):
        return False
    ledger = ledger_on(backend)
    if ledger is None:
        if not backends.takes_chords(backend):
            raise missing_ledger(backend.app)
        return False
    starting.open_chord(ledger, group_id, results, body)
    if run is not None:
        run.ledger = ledger
        if starting.is_lazy(results):
            run.start = run.header.tasks = starting.LazyTasks(run.header)
    return True


@wraps("set_chord_size", (BASE, REDIS), group_id=0)
def set_chord_size(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, group_id: Any) -> None:
    run = starting.run_now()
    if run is None or run.ledger is None:
        wrapped(*args, **kwargs)
    elif run.group_id == group_id and run.start is not None:
        # The last member is about to be sent, and all have been taken.
        results, run.start = run.start.results, None
        try:
            run.ledger.set_header(group_id, header_of(results))
        except Exception:
            if not backends.takes_chords(backend):
                raise
            warn_once("Chord %s may end late: writing its members to the ledger failed", group_id)


@wraps(
    "on_chord_part_return",
    (BASE, KEY_VALUE, REDIS, DATABASE, DJANGO, GCS),
    request=0,
    state=1,
    result=2,
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    is_member = request is not None and bool(request.chord and request.group and request.id)
    ledger = ledger_of(backend) if is_member else None
    if ledger is None or not ledger.is_own:
        return wrapped(*args, **kwargs)
    try:
        return counting.count(ledger, request, state, result, refusals=(ChordUnknown,))
    except ChordUnknown:
        # A process without the setting has started it, or the ledger was away then.
        return wrapped(*args, **kwargs)


@patch.wraps("celery.app.task", "Task.replace", until=celery_5_3, takes={"sig": 0})
def replace(wrapped: Any, task: Any, args: Any, kwargs: Any, *, sig: Any) -> Any:
    if backends.can_be_read(task.backend):
        return wrapped(*args, **kwargs)
    if kind_of(sig) == "group":
        # As by Celery, so that there is one task that gives the result.
        sig |= task.app.tasks["celery.accumulate"].s(index=0)
    _reply_as_for(task, sig)
    return wrapped(sig, *args[1:])


@patch.wraps("celery.app.task", "Task.on_replace", since=celery_5_3, takes={"sig": 0})
def on_replace(wrapped: Any, task: Any, args: Any, kwargs: Any, *, sig: Any) -> Any:
    _reply_as_for(task, sig)
    return wrapped(*args, **kwargs)


def _reply_as_for(task: Any, signature: Any) -> None:
    """Have the result of what takes a task's place sent to who waits for that of the task.

    On `rpc://` it would go to this process.
    """
    if task.request.reply_to and not backends.can_be_read(task.backend):
        _have_reply_to(signature, task.request.reply_to)


def _have_reply_to(signature: Any, queue: str) -> None:
    signature["options"]["reply_to"] = queue
    for part in giving(signature) or ():
        _have_reply_to(part, queue)


class _Unread(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """A result backend that cannot be read, as one that knows no state."""

    def get_state(self, _task_id: str) -> str:
        pending: str = states.PENDING
        return pending


@patch.wraps("celery.backends.base", "Backend._fail_chain", since=celery_5_7)
def fail_chain(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    # It asks for the states of steps that are members of a chord: a part counts once anyway.
    if isinstance(backend, _Unread) or backends.can_be_read(backend):
        return wrapped(*args, **kwargs)
    return type(backend)._fail_chain(_Unread(backend), *args, **kwargs)


@patch.wraps("celery.backends.base", "Backend.mark_as_done", takes={"result": 1, "request": 2})
def mark_as_done(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, result: Any, request: Any
) -> Any:
    with _counting_unstored(backend, request, states.SUCCESS, result):
        return wrapped(*args, **kwargs)


@patch.wraps("celery.backends.base", "Backend.mark_as_failure", takes={"exc": 1, "request": 3})
def mark_as_failure(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, exc: Any, request: Any
) -> Any:
    with _counting_unstored(backend, request, kwargs.get("state", states.FAILURE), exc):
        return wrapped(*args, **kwargs)


@contextmanager
def _counting_unstored(backend: Any, request: Any, state: str, result: Any) -> Iterator[None]:
    """Count a part whose result the block cannot store; what it raised goes on."""
    try:
        yield
    except (EncodeError, *OUTSIDE):
        raise
    except Exception:
        _count_unstored(backend, request, state, result)
        raise


def _count_unstored(backend: Any, request: Any, state: str, result: Any) -> None:
    """Count the part of a member whose result the result backend, which is away, did not take.

    One that was counted before is not counted again: of a member that did well, but whose result
    is not stored, Celery says next that it has failed.
    """
    if not stores.has_store(backend.app) or request is None or not request.chord:
        return
    ledger = ledger_of(backend)
    # What counts it otherwise looks at the stored result.
    if ledger is not None and ledger.is_own:
        backend.on_chord_part_return(request, state, result)


@wraps("add_to_chord", (BASE, REDIS, DATABASE), chord_id=0, result=1)
def add_to_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, chord_id: Any, result: Any
) -> Any:
    ledger = ledger_of(backend)
    if ledger is None or not ledger.is_own:
        return wrapped(*args, **kwargs)
    if ledger.add(chord_id, header_of([result])):
        return None
    if ledger.read(chord_id) is None and backends.takes_chords(backend):
        return wrapped(*args, **kwargs)
    raise ChordEnded(
        f"chord {chord_id} cannot take another member, it has ended: add members while one of its "
        "own still runs"
    )
