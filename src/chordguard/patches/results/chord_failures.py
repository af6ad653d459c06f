"""A chord fails, and something that waits for it is left PENDING.

`Backend.chord_error_from_stack` fails the callback that it is given. When that callback is a
member of a chord itself, its part is never returned there and the outer chord hangs (all
versions). A chain has no id to be failed under and a group's tasks stay PENDING (up to 5.5);
of a chord it is the header that is failed, not the body that the user waits for; the rest of
a chain is forgotten (up to 5.6). Here all of it is settled.
https://github.com/celery/celery/issues/1988 https://github.com/celery/celery/issues/6792
"""

from __future__ import annotations

import sys
from typing import Any

from celery.exceptions import ChordError

from ...engine.patch import REDIS, Defect, Patch
from ...engine.versions import celery_5_6, celery_5_7, celery_version
from ...lifecycle.errbacks import with_errbacks_once
from ...lifecycle.failing import fail, return_part, settle
from ...upstream.signatures import waiting_for

patch = Patch(
    "chord_failures",
    Defect(
        "A2", "Redis: a chord inside a header fails: the outer one stays PENDING", only_on=(REDIS,)
    ),
    Defect("A3", "the body is a chord and the header fails: the result stays PENDING"),
    Defect(
        "A4", "the body is a chain and the header fails: the result stays PENDING", until=celery_5_6
    ),
    Defect(
        "A5", "the body is a group and the header fails: its tasks stay PENDING", until=celery_5_6
    ),
    Defect("A7", "a chord in a chain of chords fails: the result stays PENDING", until=celery_5_7),
    Defect("A15", "a member replaced by a chord whose body is a chord fails: the outer one hangs"),
)


@patch.wraps(
    "celery.backends.base", "Backend.chord_error_from_stack", takes={"callback": 0, "exc": 1}
)
def chord_error_from_stack(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, callback: Any, exc: Any
) -> Any:
    if not isinstance(callback, dict):
        return wrapped(*args, **kwargs)
    exc = exc or sys.exc_info()[1] or ChordError("the chord failed")
    if callback.get("subtask_type"):
        fail(backend, callback, exc)
        return None
    info = wrapped(with_errbacks_once(backend.app, callback), exc)
    is_older = celery_version() < celery_5_7
    leaves = list(waiting_for(callback, follow_chain=is_older))
    # Celery has stored the failure of the callback itself.
    return_part(backend, leaves[0], exc)
    settle(backend, leaves[1:], exc)
    return info
