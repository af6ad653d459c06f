"""A header given as a generator loses all but two of its tasks (database, 5.1 to 5.2).

`group._freeze_group_tasks` zips the tasks with the same lazy list of results that
`apply_chord` exhausts before the first task is sent. Here each of the two has its own
iterator over one generator that freezes a task when either asks for it; the task gets its
position in the header, by which Redis orders the results.
https://github.com/celery/celery/issues/7285 https://github.com/celery/celery/issues/8421
"""

from __future__ import annotations

from itertools import tee
from typing import Any

from kombu.utils.uuid import uuid

from ...engine.patch import COUNTING, POLLED, SQL, Defect, Patch
from ...engine.versions import celery_5_3

patch = Patch(
    "generator_headers",
    Defect(
        "B1",
        "a generator header sends only two of its tasks, the chord never ends",
        until=celery_5_3,
    ),
    backends=(SQL, POLLED, COUNTING),
)


@patch.wraps("celery.canvas", "group._freeze_group_tasks")
def freeze_group_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    from celery.utils.functional import _regen

    if not isinstance(group.tasks, _regen):
        return wrapped(*args, **kwargs)
    return _freeze_lazily(group, *args, **kwargs)


def _freeze_lazily(
    group: Any,
    _id: Any = None,
    group_id: Any = None,
    chord: Any = None,
    root_id: Any = None,
    parent_id: Any = None,
    group_index: Any = None,
) -> tuple[Any, Any]:
    from celery.canvas import regen

    options = group.options
    gid = options.setdefault("task_id", group_id or uuid())
    given = {"group_id": group_id, "chord": chord, "group_index": group_index}
    options.update((key, value) for key, value in given.items() if value or value == 0)
    shared = {
        "group_id": group_id,
        "chord": chord,
        "root_id": options.setdefault("root_id", root_id),
        "parent_id": options.setdefault("parent_id", parent_id),
    }
    frozen = (
        (task, task.freeze(group_index=index, **shared))
        for index, task in enumerate(group._unroll_tasks(group.tasks))
    )
    for_tasks, for_results = tee(frozen)
    group.tasks = regen(task for task, _ in for_tasks)
    return gid, regen(result for _, result in for_results)
