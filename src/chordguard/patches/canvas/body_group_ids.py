"""A member replaced by a chord whose body is a chain: the outer chord waits for ever (from 5.6).

`_chord.run` freezes its body with the id of its own header for a group id. The last task of a body
that is a chain keeps that, and its part is counted for the chord that has ended, not for the one
around it; a body that is a group forgets which chord is around it. Here the body keeps its own.
Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from ..._patch import REDIS, Patch, celery_5_6

patch = Patch(
    name="body_group_ids",
    defects={"B16": "a member replaced by a chord whose body is a chain: the outer chord hangs"},
    since=celery_5_6,
    backends=(REDIS,),
)

#: The id of the chord around the one that is started now.
_around: ContextVar[str | None] = ContextVar("chordguard_around", default=None)


@patch.wraps("celery.canvas", "_chord.run")
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    token = _around.set(kwargs.get("group_id") or chord.options.get("group_id"))
    try:
        return wrapped(*args, **kwargs)
    finally:
        _around.reset(token)


@patch.wraps("celery.canvas", "group._freeze_group_tasks")
def freeze_group_tasks(wrapped: Any, header: Any, args: Any, kwargs: Any) -> Any:
    # `_chord.run` freezes the header after the body, and sends it afterwards.
    body, group_id = kwargs.get("chord"), kwargs.get("group_id")
    if body and group_id:
        for signature in _parts_of(body):
            if signature["options"].get("group_id") == group_id:
                del signature["options"]["group_id"]
        if _around.get():
            body["options"].setdefault("group_id", _around.get())
    return wrapped(*args, **kwargs)


def _parts_of(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a body and what it is made of; not the header of a chord, which has its own id."""
    yield signature
    kwargs = signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind in ("group", "chain"):
        for task in kwargs.get("tasks") or ():
            yield from _parts_of(task)
    elif kind == "chord" and kwargs.get("body"):
        yield from _parts_of(kwargs["body"])
