"""`celery.chord_unlock` polls for ever, or leaves the body PENDING when a bound is hit.

A poll is a retry of that task and `max_retries` is None. Where somebody sets a bound, up
to 5.6 MaxRetriesExceededError escapes and nobody ever fails the body. Here the bounds and
the delays come from the settings, and a chord that reaches its bound is settled.
https://github.com/celery/celery/issues/1544 https://github.com/celery/celery/issues/2725
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Retry

from ...engine.patch import POLLED, SQL, Defect, Patch
from ...engine.versions import celery_5_7
from ...lifecycle.polling import Poll

patch = Patch(
    "bounded_unlock",
    Defect("C1", "chord_unlock polls for ever"),
    Defect(
        "C2",
        "a chord whose polls are bounded stays PENDING when the bound is hit",
        until=celery_5_7,
    ),
    backends=(SQL, POLLED),
)


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    try:
        reason = None if poll.header.ready() else poll.why_settle(poll.idle())
    except Exception as exc:
        # The result store did not answer: stock retries that, unless this was the last poll.
        if poll.bound is not None and poll.retries >= poll.bound:
            poll.give_up(exc)
            raise
        reason = None
    if reason is not None:
        poll.finish(reason)
        return None
    options = {**kwargs, "interval": poll.delay, "max_retries": poll.bound}
    options["GroupResult"] = poll.group_result
    try:
        return wrapped(*args[:2], **options)
    except (Retry, Ignore):
        raise
    except Exception as exc:
        # The broker refused the retry, which from 5.7 on Celery sees to itself; or the error
        # of a member could not be put into words.
        poll.give_up(exc)
        raise
