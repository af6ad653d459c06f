"""A member replaced by a group gives its results in the wrong order (Redis, to 5.5).

The chord that takes the member's place hands its own position in the header on to each task
of the group, so that Redis has nothing to order them by. Here `group._apply_tasks` drops it,
as from 5.6 on. https://github.com/celery/celery/issues/9909
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import REDIS, Defect, Patch
from ...engine.versions import celery_5_6

patch = Patch(
    "replaced_group_order",
    Defect(
        "B12",
        "Redis: a member replaced by a group gives its results in the wrong order",
        until=celery_5_6,
    ),
    backends=(REDIS,),
)


@patch.wraps("celery.canvas", "group._apply_tasks")
def apply_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **{key: kwargs[key] for key in kwargs if key != "group_index"})
