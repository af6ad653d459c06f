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

from ... import completion
from ..._patch import REDIS, Patch, celery_5_6, celery_5_7, celery_version

patch = Patch(
    name="chord_failures",
    defects={
        "A2": "Redis: a chord inside a header fails: the outer one stays PENDING",
        "A3": "the body is a chord and the header fails: the result stays PENDING",
        "A4": "the body is a chain and the header fails: the result stays PENDING",
        "A5": "the body is a group and the header fails: its tasks stay PENDING",
        "A7": "a chord in a chain of chords fails: the result stays PENDING",
        "A15": "a member replaced by a chord whose body is a chord fails: the outer one hangs",
    },
    mended={"A4": celery_5_6, "A5": celery_5_6, "A7": celery_5_7},
    only_on={"A2": (REDIS,)},
)


@patch.wraps("celery.backends.base", "Backend.chord_error_from_stack")
def chord_error_from_stack(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    callback, exc = _arguments(*args, **kwargs)
    if not isinstance(callback, dict):
        return wrapped(*args, **kwargs)
    exc = exc or sys.exc_info()[1] or ChordError("the chord failed")
    if callback.get("subtask_type"):
        completion.fail(backend, callback, exc)
        return None
    info = wrapped(completion.with_errbacks_once(backend.app, callback), exc)
    is_older = celery_version() < celery_5_7
    leaves = list(completion.waiting_for(callback, follow_chain=is_older))
    # Celery has stored the failure of the callback itself.
    completion.return_part(backend, leaves[0], exc)
    completion.settle(backend, leaves[1:], exc)
    return info


def _arguments(callback: Any, exc: Any = None) -> tuple[Any, Any]:
    return callback, exc
