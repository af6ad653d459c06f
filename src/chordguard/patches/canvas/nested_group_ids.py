"""A header member that ends in a group makes the body run early, or never (Redis, to 5.6).

A group frozen as part of another takes the outer group's id for its own. When the worker
starts it, it overwrites the outer chord's size, and saved results collapse into one another.
Here such a group gets an id of its own, as from 5.7 on.
https://github.com/celery/celery/issues/8182 https://github.com/celery/celery/issues/5947
"""

from __future__ import annotations

from typing import Any

from kombu.utils.uuid import uuid

from ..._patch import Patch, celery_5_7

patch = Patch(
    name="nested_group_ids",
    defects=("B3",),
    symptom="Redis: a chain that ends in a group, in the header: the body runs early or never",
    until=celery_5_7,
)


@patch.wraps("celery.canvas", "group.freeze")
def freeze(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    # A header is frozen by `_freeze_group_tasks`: only a group inside another comes here
    # with the id of the group that it is part of.
    if len(args) > 1 or kwargs.get("group_id"):
        group.options.setdefault("task_id", uuid())
    return wrapped(*args, **kwargs)
