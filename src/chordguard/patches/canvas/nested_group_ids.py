"""A header member that ends in a group makes the body run early, or never (Redis).

Up to 5.6 a group frozen as part of another takes the outer group's id for its own. When the worker
starts it, it overwrites the outer chord's size, and saved results collapse into one another. From
5.7 on such a group has an id of its own, and gives it to the chords among its tasks: their bodies
are counted under it, not under the id of the outer chord, which never ends. Here the group has an
id of its own, and its tasks are counted where the chord that waits for them looks.
https://github.com/celery/celery/issues/8182 https://github.com/celery/celery/issues/5947
"""

from __future__ import annotations

from typing import Any

from kombu.utils.uuid import uuid

from ...engine.patch import REDIS, Defect, Patch
from ...engine.versions import celery_5_7

patch = Patch(
    "nested_group_ids",
    Defect(
        "B3",
        "Redis: a chain that ends in a group, in the header: the body runs early or never",
        until=celery_5_7,
    ),
    Defect(
        "B15",
        "Redis: a chord in a group inside the header: the outer chord hangs",
        since=celery_5_7,
    ),
    backends=(REDIS,),
)


@patch.wraps("celery.canvas", "group.freeze", until=celery_5_7)
def freeze(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    # A header is frozen by `_freeze_group_tasks`: only a group inside another comes here
    # with the id of the group that it is part of.
    if len(args) > 1 or kwargs.get("group_id"):
        group.options.setdefault("task_id", uuid())
    return wrapped(*args, **kwargs)


@patch.wraps("celery.canvas", "group._apply_tasks")
def apply_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    # A simple task keeps the id that it was frozen with; a chord hands this one on to its body.
    around = group.options.get("group_id")
    if around and group.options.get("chord"):
        kwargs = {**kwargs, "group_id": around}
    return wrapped(*args, **kwargs)
