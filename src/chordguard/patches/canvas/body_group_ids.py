"""A member replaced by a chord whose body is a chain: the outer chord waits for ever (from 5.6).

`_chord.run` freezes its body with the id of its own header for a group id. The last task of a body
that is a chain keeps that, and its part is counted for the chord that has ended, not for the one
around it; a body that is a group forgets which chord is around it. Here the body keeps its own.
Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...engine.patch import BY_NAME, REDIS, Defect, Patch
from ...engine.versions import celery_5_6
from ...lifecycle import starting
from ...upstream.signatures import body_of, kind_of, tasks_of

patch = Patch(
    "body_group_ids",
    Defect(
        "B16",
        "a member replaced by a chord whose body is a chain: the outer chord hangs",
        since=celery_5_6,
    ),
    backends=(REDIS,),
)


@patch.wraps(
    "celery.canvas",
    "group._freeze_group_tasks",
    takes={"chord": BY_NAME, "group_id": BY_NAME},
)
def freeze_group_tasks(
    wrapped: Any, header: Any, args: Any, kwargs: Any, *, chord: Any, group_id: Any
) -> Any:
    # `_chord.run` freezes the header after the body, and sends it afterwards.
    if chord and group_id:
        for signature in _parts_of(chord):
            if signature["options"].get("group_id") == group_id:
                del signature["options"]["group_id"]
        run = starting.run_now()
        if run is not None and run.outer_id:
            chord["options"].setdefault("group_id", run.outer_id)
    return wrapped(*args, **kwargs)


def _parts_of(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a body and what it is made of; not the header of a chord, which has its own id."""
    yield signature
    parts = [body_of(signature)] if kind_of(signature) == "chord" else tasks_of(signature)
    for part in filter(None, parts if kind_of(signature) else ()):
        yield from _parts_of(part)
