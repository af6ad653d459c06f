"""The results of a group nested in the header come back reversed.

`group._freeze_unroll` puts a nested group's tasks on the left of its stack one by one, the
last one ends up first: the header `[a, group(b, c), d]` gives the body `[a, c, b, d]`. Here
the header is unrolled in order before Celery walks it. Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Any

from ..._patch import Patch

patch = Patch(
    name="header_order",
    defects={"B10": "the results of a group inside the header come in the wrong order"},
)


@patch.wraps("celery.canvas", "group._freeze_unroll")
def freeze_unroll(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    tasks = list(group.tasks)
    if any(task.get("subtask_type") == "group" for task in tasks):
        unrolled = list(_unrolled(tasks, group._app))
        # Celery replaces the tasks by the unrolled ones, too, when it has walked them.
        if isinstance(group.tasks, MutableSequence):
            group.tasks[:] = unrolled
        else:
            group.tasks = unrolled
    return wrapped(*args, **kwargs)


def _unrolled(tasks: Any, app: Any) -> Iterator[Any]:
    from celery.canvas import maybe_signature

    for task in tasks:
        if task.get("subtask_type") == "group":
            yield from _unrolled(maybe_signature(task, app=app).tasks, app)
        else:
            yield task
