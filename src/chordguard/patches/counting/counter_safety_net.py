"""A member is lost, and nobody looks at its chord again (memcached, DynamoDB, Cloud Storage).

Where a counter counts the parts of a chord, Celery looks at it with each part, and only then. The
chord hangs when the worker of a member is killed, when the counter has expired or was evicted, or
when the worker that ends the chord is killed. Here a late and slow `celery.chord_unlock` looks at
it, as it does on SQL. To a worker without the patches it has nothing to do but wait.
https://github.com/celery/celery/issues/2911
"""

from __future__ import annotations

import logging
from typing import Any

from ...engine.patch import COUNTING, Defect, Patch
from ...lifecycle import incrementing, safety_net
from ...lifecycle.polling import BODY, Poll
from ...upstream import hooks

logger = logging.getLogger("chordguard")

patch = Patch(
    "counter_safety_net",
    Defect("B7", "the worker of a member is killed: the chord hangs"),
    Defect("B8", "a chord that outlives its counter never ends"),
    Defect("B11", "the worker that ends a chord is killed: the body never runs"),
    backends=(COUNTING,),
)

#: The keyword argument that says, to where it is sent, that a poller is such a safety net.
IS_COUNTED = "chordguard_is_counted"


@patch.wraps(
    "celery.backends.base",
    "BaseKeyValueStoreBackend._apply_chord_incr",
    takes={"header_result_args": 0, "body": 1},
)
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    started = wrapped(*args, **kwargs)
    group_id, results = header_result_args
    if not incrementing.is_claim(group_id) and not hooks.counts_itself(backend):
        given = ("header_result_args", "body")
        options = {name: kwargs[name] for name in kwargs if name not in given}
        options[IS_COUNTED] = True
        safety_net.send_unlock(backend, group_id, results, body, options)
    return started


@patch.wraps_task("celery.chord_unlock", "apply_async")
def send_unlock(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    given = args[1] if len(args) > 1 else kwargs.get("kwargs")
    if not given or not given.pop(IS_COUNTED, False):
        return wrapped(*args, **kwargs)
    (group_id, body), *others = args
    poller = safety_net.unlock_id(group_id)
    given.pop(safety_net.UNLOCK_ID, None)
    given[BODY] = body
    # A worker without the patches joins the header again, and hands the results to this.
    nothing = task.app.signature("celery.accumulate", task_id=poller)
    return wrapped((group_id, nothing), *others, **{**kwargs, "task_id": poller})


@patch.wraps_task("celery.chord_unlock")
def unlock_chord(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    if not kwargs.get(BODY) or not Poll.is_ours(task, kwargs):
        return wrapped(*args, **kwargs)
    poll = Poll.of(task, args, kwargs)
    try:
        delay = incrementing.look(poll)
    except Exception:
        logger.warning(
            "Could not check chord %s; its safety net will retry", poll.group_id, exc_info=True
        )
        delay = safety_net.first_delay(task.app, poll.body)
    if delay is not None:
        bound = None if poll.bound is None else max(poll.bound, poll.retries + 1)
        raise task.retry(countdown=delay, max_retries=bound, **poll.retry_options)
    return None
