"""A chain that has a group for a step, and an errback, cannot be started (5.3).

Inside a header, or from a worker, such a chain has its errbacks as data. `group.link_error` clones
them as if they were signatures, and raises an AttributeError. Here they are made signatures first,
as from 5.4 on. https://github.com/celery/celery/pull/8702
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_3, celery_5_4

patch = Patch(
    "linked_groups",
    Defect(
        "A17",
        "a chain with a group and an errback in the header: starting the chord raises",
        since=celery_5_3,
        until=celery_5_4,
    ),
)


@patch.wraps("celery.canvas", "group.link_error")
@patch.wraps("celery.canvas", "_chord.link_error")
def link_error(wrapped: Any, step: Any, args: Any, kwargs: Any) -> Any:
    from celery.canvas import maybe_signature

    (errback,) = args or kwargs.values()
    return wrapped(maybe_signature(errback, app=step.app))
