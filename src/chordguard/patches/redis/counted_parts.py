"""A chord hangs, runs early or leaves its keys behind when something goes wrong (Redis).

`RedisBackend.on_chord_part_return` counts a part without retrying what fails, counts one that
comes twice again (to 5.6), drops one that finds no size, and dies with its claim on the chord;
keys stay behind. Here one script counts, on Celery's own keys, and who counts the last part
ends the chord; the ledger lets the watchdog find what went wrong.
https://github.com/celery/celery/issues/4412 https://github.com/celery/celery/issues/3363
https://github.com/celery/celery/issues/5237 https://github.com/celery/celery/issues/4660
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7
from ...errors import ChordEnded
from ...ledger.access import ledger_beside
from ...ledger.packing import header_of
from ...lifecycle import counting, starting
from ...log import warn_once
from ...upstream import backends

patch = Patch(
    "counted_parts",
    Defect(
        "A8",
        "Redis: a member killed at its hard time limit: the errback is called twice",
        until=celery_5_7,
    ),
    Defect(
        "B4",
        "Redis: a member that runs twice is counted twice, the body runs early",
        until=celery_5_7,
    ),
    Defect("B6", "Redis: an error of Redis while a part is returned: the chord fails or hangs"),
    Defect("B7", "Redis: the worker of a member is killed: the chord hangs"),
    Defect("B8", "Redis: a chord that outlives result_expires never ends"),
    Defect(
        "B11",
        "Redis: the worker that ends a chord is killed: the body never runs",
        since=celery_5_7,
    ),
    Defect("D1", "Redis: keys of failed chords stay behind"),
    driver="redis",
    needs_ledger=True,
)

REFUSED = "Parts are counted as by Celery alone: Redis refuses scripts (EVALSHA, EVAL)"


@patch.wraps(
    "celery.backends.redis", "RedisBackend.apply_chord", takes={"header_result_args": 0, "body": 1}
)
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    wrapped(*args, **kwargs)
    group_id, results = header_result_args
    ledger = ledger_beside(backend)
    if ledger is None:
        return
    try:
        starting.open_chord(ledger, group_id, results, body)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Chord %s is not tracked: writing it to the ledger failed", group_id)
        return
    run = starting.run_of(group_id)
    if run is not None and starting.is_lazy(results):
        run.start = run.header.tasks = starting.LazyTasks(run.header)


#: In place of the id of a group whose members are counted by the chord around it: the size of
#: such a group is not stored, since it would never be read, nor deleted.
NOT_COUNTED = object()


@patch.wraps("celery.canvas", "group._apply_tasks", takes={"tasks": 0})
def apply_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any, *, tasks: Any) -> Any:
    if not backends.is_redis(group.app.backend):
        return wrapped(*args, **kwargs)
    return wrapped(_marked(tasks), *args[1:], **kwargs)


def _marked(tasks: Any) -> Iterator[Any]:
    for signature, result, group_id in tasks:
        counted_as = signature.options.get("group_id")
        is_around = counted_as is not None and counted_as != group_id
        yield signature, result, NOT_COUNTED if is_around else group_id


@patch.wraps(
    "celery.backends.redis", "RedisBackend.set_chord_size", takes={"group_id": 0, "chord_size": 1}
)
def set_chord_size(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, group_id: Any, chord_size: Any
) -> Any:
    if group_id is NOT_COUNTED:
        return
    ledger = ledger_beside(backend)
    run = starting.run_of(group_id)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    header = None
    if run is not None and run.start is not None:
        # The last member is about to be sent, and all have been taken.
        header, run.start = header_of(run.start.results), None
    try:
        ledger.set_size(group_id, chord_size, header)
    except backend.redis.exceptions.ResponseError:
        warn_once(REFUSED)
        wrapped(*args, **kwargs)


@patch.wraps(
    "celery.backends.redis", "RedisBackend.add_to_chord", takes={"group_id": 0, "result": 1}
)
def add_to_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, group_id: Any, result: Any
) -> Any:
    ledger = ledger_beside(backend)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    try:
        is_added = ledger.add(group_id, header_of([result]))
    except backend.redis.exceptions.ResponseError:
        warn_once(REFUSED)
        wrapped(*args, **kwargs)
        return
    if not is_added:
        raise ChordEnded(
            f"chord {group_id} cannot take another member, it has ended: add members while one of "
            "its own still runs"
        )


@patch.wraps(
    "celery.backends.redis",
    "RedisBackend.on_chord_part_return",
    takes={"request": 0, "state": 1, "result": 2},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    if not request.group or not request.id:
        return
    ledger = ledger_beside(backend)
    if ledger is None:
        wrapped(*args, **kwargs)
        return
    refusal = backend.redis.exceptions.ResponseError
    try:
        counting.count(ledger, request, state, result, refusals=(refusal,))
    except refusal:
        warn_once(REFUSED)
        wrapped(*args, **kwargs)
