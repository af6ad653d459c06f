"""A group inside a header that is a generator: wrong order, or results nested as they are not.

Celery takes the groups of a list header apart before it freezes the tasks. Those of a generator
are frozen as groups and taken apart only when they are sent: their tasks get positions that
others have, too, and the body gets a list within the list on SQL. Here they are taken apart when
the generator gives them: the header `(a, group(b, c), d)` gives `[a, b, c, d]`, as a list does.
Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import Defect, Patch
from ...upstream.signatures import unrolled

patch = Patch(
    "lazy_groups",
    Defect("B13", "a group inside a generator header: results in the wrong order, or nested"),
)


@patch.wraps("celery.canvas", "group._unroll_tasks")
def unroll_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    return unrolled(wrapped(*args, **kwargs), lambda inner: inner._unroll_tasks(inner.tasks))
