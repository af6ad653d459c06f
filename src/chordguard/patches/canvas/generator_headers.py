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

from ..._patch import Patch, celery_5_3

patch = Patch(
    name="generator_headers",
    defects=("B1", "B2"),
    symptom="SQL: a generator header sends only two of its tasks, the chord never ends",
    until=celery_5_3,
)


@patch.wraps("celery.canvas", "group._freeze_group_tasks")
def freeze_group_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    from celery.utils.functional import _regen, regen

    if not isinstance(group.tasks, _regen):
        return wrapped(*args, **kwargs)
    tasks, group.tasks = group.tasks, []
    gid, _ = wrapped(*args, **kwargs)  # sets the group's own options
    options = group.options
    positions = {
        key: options.get(key) for key in ("group_id", "chord", "root_id", "parent_id")
    }
    frozen = (
        (task, task.freeze(group_index=index, **positions))
        for index, task in enumerate(group._unroll_tasks(tasks))
    )
    for_tasks, for_results = tee(frozen)
    group.tasks = regen(task for task, _ in for_tasks)
    return gid, regen(result for _, result in for_results)
