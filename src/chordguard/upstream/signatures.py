"""Walk through signatures: what a canvas is made of, and which results it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = (
    "as_list",
    "body_of",
    "chained_after",
    "chord_of",
    "giving",
    "in_place_of",
    "kind_of",
    "options_of",
    "request_of",
    "result_id",
    "task_ids",
    "tasks_of",
    "unrolled",
    "waiting_for",
)


Data = Mapping[str, Any]


def kind_of(signature: Data) -> str | None:
    """Return "group", "chain" or "chord"; None for a task. Other canvases count as tasks."""
    kind = signature.get("subtask_type")
    return kind if kind in ("group", "chain", "chord") else None


def options_of(signature: Data) -> Data:
    """Return the options of a signature."""
    return signature.get("options") or {}


def tasks_of(signature: Data) -> list[Any]:
    """Return the tasks of a group, or the steps of a chain."""
    return list((signature.get("kwargs") or {}).get("tasks") or ())


def body_of(signature: Data) -> Any:
    """Return the body of a chord; None for one without."""
    return (signature.get("kwargs") or {}).get("body") or None


def giving(signature: Data) -> list[Any] | None:
    """Return the parts that give the results of a canvas; None for a task, which is no canvas."""
    kind = kind_of(signature)
    if kind == "group":
        return tasks_of(signature)
    if kind == "chain":
        return tasks_of(signature)[-1:]
    if kind == "chord":
        body = body_of(signature)
        return [] if body is None else [body]
    return None


def unrolled(tasks: Iterable[Any], open_group: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield `tasks` with those of groups in their places; `open_group` returns a group's tasks."""
    for task in tasks:
        if kind_of(task) == "group":
            yield from unrolled(open_group(task), open_group)
        else:
            yield task


def task_ids(leaves: Iterable[Data]) -> list[str]:
    """Return the ids that the frozen signatures have, in their order."""
    ids = (options_of(leaf).get("task_id") for leaf in leaves)
    return [task_id for task_id in ids if task_id]


def result_id(signature: Data) -> str | None:
    """Return the id of the result that the frozen `signature` gives; a group's is its own."""
    parts = giving(signature) if kind_of(signature) != "group" else None
    if parts is None:
        task_id: str | None = options_of(signature).get("task_id")
        return task_id
    return result_id(parts[0]) if parts else None


def waiting_for(signature: Any, *, follow_chain: bool = True) -> Iterator[Data]:
    """Yield the simple signatures whose results `signature` would have given.

    For a group each of its tasks, for a chain each of its steps, for a chord its body; all
    the way down, and what is chained after it. `signature` is frozen, and may be data.
    """
    parts = giving(signature)
    if kind_of(signature) == "chain":
        for step in tasks_of(signature)[:-1]:
            yield from waiting_for(step)
    if parts is None:
        yield signature
    for part in parts or ():
        yield from waiting_for(in_place_of(signature, part))
    if follow_chain:
        yield from _steps(options_of(signature).get("chain"))


def in_place_of(whole: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `part` that gives the result of `whole`, as a member of the same chord.

    What takes a task's place is frozen before it is told of which chord that is a member; it tells
    its parts only when it runs.
    """
    options = options_of(whole)
    if not options.get("chord") or options_of(part).get("chord"):
        return part
    told = {key: options.get(key) for key in ("chord", "group_id", "group_index")}
    return {**part, "options": {**options_of(part), **told}}


def chained_after(request: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the simple signatures that would have run after the task of `request`."""
    return _steps(request.chain)


def _steps(chain: Sequence[Mapping[str, Any]] | None) -> Iterator[Mapping[str, Any]]:
    # The next step of a chain comes last.
    for step in reversed(chain or ()):
        yield from waiting_for(step)


def request_of(signature: Mapping[str, Any]) -> Any:
    """Return the request that a worker would have had for the frozen `signature`."""
    from celery.app.task import Context

    options = dict(options_of(signature))
    request = Context(options)
    request.update(
        id=options.get("task_id"),
        task=signature.get("task"),
        args=signature.get("args"),
        kwargs=signature.get("kwargs"),
        group=options.get("group_id"),
        chord=options.get("chord"),
        group_index=options.get("group_index"),
        errbacks=as_list(options.get("link_error")),
        delivery_info={},
    )
    return request


def chord_of(leaves: Iterable[Mapping[str, Any]]) -> Any:
    """Return the body of the chord of which the frozen signatures are members, if there is one."""
    chords = (options_of(leaf).get("chord") for leaf in leaves)
    return next(filter(None, chords), None)


def as_list(value: Any) -> list[Any]:
    """Return what Celery links as a list, whether it is one, a single signature or nothing."""
    if not value:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
