"""A chord hangs, runs early or leaves its keys behind when something goes wrong (Redis).

`RedisBackend.on_chord_part_return` counts a part without retrying what fails, counts one that
comes twice again (to 5.6), drops one that finds no size, and dies with its claim on the chord;
keys stay behind. Here one script counts, on Celery's own keys, and who counts the last part
ends the chord through `completion.finish`; the ledger lets the watchdog find what went wrong.
https://github.com/celery/celery/issues/4412 https://github.com/celery/celery/issues/3363
https://github.com/celery/celery/issues/5237 https://github.com/celery/celery/issues/4660
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from ... import counting, starting
from ..._patch import Patch, celery_5_7
from ...ledger.model import header_of

patch = Patch(
    name="counted_parts",
    defects={
        "A8": "Redis: a member killed at its hard time limit: the errback is called twice",
        "B4": "Redis: a member that runs twice is counted twice, the body runs early",
        "B6": "Redis: an error of Redis while a part is returned: the chord fails or hangs",
        "B7": "Redis: the worker of a member is killed: the chord hangs",
        "B8": "Redis: a chord that outlives result_expires never ends",
        "B11": "Redis: the worker that ends a chord is killed: the body never runs",
        "D1": "Redis: keys of failed chords stay behind",
    },
    driver="redis",
    mended={"A8": celery_5_7, "B4": celery_5_7},
    arisen={"B11": celery_5_7},
    needs_ledger=True,
)

REFUSED = "Parts are counted as by Celery alone: Redis refuses scripts (EVALSHA, EVAL)"


@patch.wraps("celery.canvas", "_chord.run")
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    with starting.running(args[0] if args else kwargs["header"]):
        return wrapped(*args, **kwargs)


@patch.wraps("celery.backends.redis", "RedisBackend.apply_chord")
def apply_chord(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    wrapped(*args, **kwargs)
    (group_id, results), body = _arguments_of_apply(*args, **kwargs)
    ledger = counting.ledger_of(backend)
    if ledger is None:
        return
    try:
        starting.open_chord(ledger, group_id, results, body)
    except Exception:  # noqa: BLE001 - it is logged
        counting.warn_once("Chord %s is not looked after: it is not in the ledger", group_id)
        return
    run = starting.run_of(group_id)
    if run is not None and starting.is_lazy(results):
        run.start = run.header.tasks = starting.LazyTasks(run.header)


#: A group whose members are counted by the chord around it, not under its own id.
_counted_around: ContextVar[Any] = ContextVar("chordguard_counted_around", default=None)


@patch.wraps("celery.canvas", "group._apply_tasks")
def apply_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(_noted(args[0]), *args[1:], **kwargs)


def _noted(tasks: Any) -> Iterator[Any]:
    for task in tasks:
        signature, _, group_id = task
        counted_as = signature.options.get("group_id")
        is_around = counted_as is not None and counted_as != group_id
        _counted_around.set(group_id if is_around else None)
        yield task


@patch.wraps("celery.backends.redis", "RedisBackend.set_chord_size")
def set_chord_size(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    group_id, size = _arguments_of_size(*args, **kwargs)
    if _counted_around.get() == group_id:
        return  # nobody would ever read its size, nor delete it
    ledger = counting.ledger_of(backend)
    run = starting.run_of(group_id)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    header = None
    if run is not None and run.start is not None:
        # The last member is about to be sent, and all have been taken.
        header, run.start = header_of(run.start.results), None
    try:
        ledger.set_size(group_id, size, header)
    except backend.redis.exceptions.ResponseError:
        counting.warn_once(REFUSED)
        wrapped(*args, **kwargs)


@patch.wraps("celery.backends.redis", "RedisBackend.add_to_chord")
def add_to_chord(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    group_id, result = _arguments_of_add(*args, **kwargs)
    ledger = counting.ledger_of(backend)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    try:
        is_added = ledger.add(group_id, header_of([result]))
    except backend.redis.exceptions.ResponseError:
        counting.warn_once(REFUSED)
        wrapped(*args, **kwargs)
        return
    if not is_added:
        raise RuntimeError(
            f"chord {group_id} cannot take another member, it has ended: add members while one of "
            "its own still runs"
        )


@patch.wraps("celery.backends.redis", "RedisBackend.on_chord_part_return")
def on_chord_part_return(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    request, state, result = _arguments_of_part(*args, **kwargs)
    if not request.group or not request.id:
        return
    ledger = counting.ledger_of(backend)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    refusal = backend.redis.exceptions.ResponseError
    try:
        counting.count(ledger, request, state, result, refusals=(refusal,))
    except refusal:
        counting.warn_once(REFUSED)
        wrapped(*args, **kwargs)


def _arguments_of_apply(header_result_args: Any, body: Any, **_: Any) -> tuple[Any, Any]:
    return header_result_args, body


def _arguments_of_size(group_id: Any, chord_size: Any) -> tuple[Any, Any]:
    return group_id, chord_size


def _arguments_of_add(group_id: Any = None, result: Any = None, **_: Any) -> tuple[Any, Any]:
    return group_id, result


def _arguments_of_part(
    request: Any, state: Any, result: Any = None, **_: Any
) -> tuple[Any, Any, Any]:
    return request, state, result
