"""A group inside a header that is a generator: wrong order, or results nested as they are not.

Celery takes the groups of a list header apart before it freezes the tasks. Those of a generator
are frozen as groups and taken apart only when they are sent: their tasks get positions that
others have, too, and the body gets a list within the list on SQL. Here they are taken apart when
the generator gives them: the header `(a, group(b, c), d)` gives `[a, b, c, d]`, as a list does.
Unreported upstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..._patch import Patch

patch = Patch(
    name="lazy_groups",
    defects={"B13": "a group inside a generator header: results in the wrong order, or nested"},
)


@patch.wraps("celery.canvas", "group._unroll_tasks")
def unroll_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    return _taken_apart(wrapped(*args, **kwargs))


def _taken_apart(tasks: Iterable[Any]) -> Iterator[Any]:
    for task in tasks:
        if task.get("subtask_type") == "group":
            yield from _taken_apart(task._unroll_tasks(task.tasks))
        else:
            yield task
