"""One failed header task keeps the body from running (polled).

`celery.chord_unlock` joins the header with `propagate=True`. It takes the class of the
header's results as an argument: here it gets one whose join applies the chord's policy. Up to
5.6 that join fails a good chord, too, when it takes over `result_chord_join_timeout`: ours reads
all results at once, however long that takes.
https://github.com/celery/celery/issues/3709
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import POLLED, SQL, Defect, Patch
from ...engine.versions import celery_5_7
from ...lifecycle.polling import Poll

patch = Patch(
    "tolerant_unlock",
    Defect("A1", "one failing header task and the body never runs"),
    Defect("A9", "the error of a failed chord that is polled names no member"),
    Defect(
        "C7",
        "a good chord fails because reading its results takes over 3 seconds",
        until=celery_5_7,
    ),
    backends=(SQL, POLLED),
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
    except Exception:  # noqa: BLE001 - the result store did not answer: Celery looks again
        return False
