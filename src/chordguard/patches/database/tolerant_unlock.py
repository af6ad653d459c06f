"""One failed header task keeps the body from running (database).

`celery.chord_unlock` joins the header with `propagate=True`. It takes the class of the
header's results as an argument: here it gets one whose join applies the chord's policy.
https://github.com/celery/celery/issues/3709
"""

from __future__ import annotations

from typing import Any

from ..._patch import Patch
from ...polling import Poll

patch = Patch(
    name="tolerant_unlock",
    defects=("A1",),
    symptom="SQL: one failing header task and the body never runs",
    driver="sqlalchemy",
)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    if is_ready(poll):
        poll.finish()
        return None
    return wrapped(*args, **{**kwargs, "GroupResult": poll.group_result})


def is_ready(poll: Poll) -> bool:
    try:
        return poll.header.ready()
    except Exception:  # noqa: BLE001 - the database did not answer: Celery looks again
        return False
