"""The results of a group nested in the header come back reversed.

`group._freeze_unroll` puts a nested group's tasks on the left of its stack one by one, the
last one ends up first: the header `[a, group(b, c), d]` gives the body `[a, c, b, d]`. Here
the header is unrolled in order before Celery walks it. Unreported upstream.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

from ...engine.patch import Defect, Patch
from ...upstream.signatures import kind_of, unrolled

patch = Patch(
    "header_order",
    Defect("B10", "the results of a group inside the header come in the wrong order"),
)


@patch.wraps("celery.canvas", "group._freeze_unroll")
def freeze_unroll(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    from celery.canvas import maybe_signature

    tasks = list(group.tasks)
    if any(kind_of(task) == "group" for task in tasks):
        in_order = list(unrolled(tasks, lambda inner: maybe_signature(inner, app=group._app).tasks))
        # Celery replaces the tasks by the unrolled ones, too, when it has walked them.
        if isinstance(group.tasks, MutableSequence):
            group.tasks[:] = in_order
        else:
            group.tasks = in_order
    return wrapped(*args, **kwargs)
