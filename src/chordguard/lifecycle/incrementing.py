"""Chords that the counter of a key-value store counts, without a ledger.

With each part `BaseKeyValueStoreBackend` increments a counter, and the part with which it reaches
the size of the chord ends it: a part that comes twice counts twice. Here the counter only says when
to look. The chord ends when all members have results, and who increments a second counter first
ends it. The saved header of a chord says that it has not ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from ..errors import OUTSIDE
from ..ledger.packing import Header, header_of, leaf_ids
from ..log import warn_once, warn_once_of
from ..policy import Policy
from ..upstream.results import Results, forget_results, read_results
from . import safety_net
from .ending import Ending
from .polling import Poll

__all__ = (
    "claim_id",
    "count",
    "forget",
    "is_claim",
    "look",
)

logger = logging.getLogger("chordguard")

#: What the id of a chord gets for the counter that says who ends it.
_CLAIM = "-end"
#: Seconds after which a result that may be stored, and not to be read yet, is read again.
READ_AGAIN_AFTER = (0.1, 0.3, 0.6)
#: Seconds after which an increment that failed is tried again. It may count twice.
INCREMENT_AGAIN_AFTER = (0.1, 0.5)
#: Seconds that the worker which ends a chord may take for it, before its safety net does.
CLAIM_SECONDS = 60.0
#: The keyword argument in which the safety net keeps since when (Unix time) a chord is claimed.
CLAIMED_SINCE = "chordguard_claimed_since"


def claim_id(group_id: str) -> str:
    """Return the id under which the claims on a chord are counted."""
    return f"{group_id}{_CLAIM}"


def is_claim(group_id: str) -> bool:
    """Tell whether the counter of `group_id` counts claims."""
    return group_id.endswith(_CLAIM)


def count(backend: Any, request: Any) -> bool:
    """Count the part that a task returns; end the chord if all of its members have results.

    Returns:
        False where nothing is known of the chord: Celery may say so.
    """
    group_id = request.group
    try:
        value = _incremented(backend, backend.get_key_for_chord(group_id))
        size = request.chord.get("chord_size")
        if value is not None and size is not None and value < size:
            _keep_alive(backend, request)
            return True
        saved = backend.restore_group(group_id, cache=False)
        if saved is None:
            # Who claims it now is the first to do so: it has not ended, but expired.
            return (_claims(backend, group_id) or 0) > 1
        header = header_of(saved.results)
        size = len(set(leaf_ids(header)))
        if value is None or value >= size:
            _end_if_ready(backend, request, header, value, size)
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Could not count a member of chord %s; its safety net will", group_id)
    return True


def _end_if_ready(backend: Any, request: Any, header: Header, value: int | None, size: int) -> None:
    """End a chord of whose parts as many as it has members, or more, were counted."""
    group_id = request.group
    results = _ready(backend, header, is_due=value == size)
    if len(results) < size:
        if value == size:
            message = "Chord %s: a member was counted twice; not all of its members have results"
            warn_once_of(group_id, message)
        return
    claims = _claims(backend, group_id)
    # A producer without the patches starts no counter for the claims: then Celery's rule decides.
    if claims == 1 or (claims is None and value == size):
        _end(backend, group_id, request.chord, header, results)


def _ready(backend: Any, header: Header, *, is_due: bool) -> Results:
    """Return the results of those members that are ready.

    `is_due`: they are all expected to be; a store may take a moment until it shows them.
    """
    ids = list(leaf_ids(header))
    ready = Results()
    for delay in (0.0, *READ_AGAIN_AFTER) if is_due else (0.0,):
        time.sleep(delay)
        found = read_results(backend, [id_ for id_ in ids if id_ not in ready])
        for result in found.values():
            if result.is_ready:
                ready.add(*result)
        ready.spare += found.spare
        if len(ready) == len(set(ids)):
            break
    return ready


def _end(backend: Any, group_id: str, body: Any, header: Header, results: Results) -> None:
    app = backend.app
    ending = Ending(app, group_id, body, Policy.of(app, body), header, results)
    ending.publish_or_fail()
    forget(backend, group_id)
    _forget_spare(backend, group_id, results.spare)


def look(poll: Poll) -> float | None:
    """Check a chord for its safety net; end it where nobody else will.

    Returns:
        The seconds until the next look; None: it has ended.
    """
    backend, group_id = poll.app.backend, poll.group_id
    if backend.restore_group(group_id, cache=False) is None:
        return None
    settlement = None if poll.header.ready() else poll.why_settle(poll.idle())
    if settlement is None and not poll.header.ready():
        return _delay(poll)
    if _claims(backend, group_id) != 1:
        if _has_ended(poll):
            return None
        if not _takes_over(poll):
            return CLAIM_SECONDS
    poll.finish(settlement)
    forget(backend, group_id)
    _forget_spare(backend, group_id, poll.spare)
    return None


def _has_ended(poll: Poll) -> bool:
    """Tell whether a chord that is claimed has ended: somebody may have saved its header again."""
    backend = poll.app.backend
    value = _incremented(backend, backend.get_key_for_chord(poll.group_id))
    # Its counter is deleted then, and may have been made anew.
    return value in (None, 1) or poll.is_over()


def _takes_over(poll: Poll) -> bool:
    """Tell whether who claimed a chord had time enough to end it."""
    request = poll.task.request
    now = time.time()
    since = request.kwargs.get(CLAIMED_SINCE)
    if isinstance(since, (int, float)) and now - since >= CLAIM_SECONDS:
        logger.warning("Chord %s was claimed and not ended; its safety net ends it", poll.group_id)
        return True
    request.kwargs = {CLAIMED_SINCE: now, **request.kwargs}
    return False


def _delay(poll: Poll) -> float:
    delay = poll.asked_delay
    if delay is None:
        delay = safety_net.next_delay(poll.app, poll.retries, poll.body)
        if poll.policy.timeout is not None:
            delay = min(delay, max(1.0, poll.policy.timeout - poll.idle()))
    return delay


def forget(backend: Any, group_id: str) -> None:
    """Delete what a store keeps of a chord that has ended, but who ended it."""
    try:
        backend.delete_group(group_id)
        backend.delete(backend.get_key_for_chord(group_id))
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Could not delete what is kept of chord %s; it expires by itself", group_id)


def _forget_spare(backend: Any, group_id: str, task_ids: Sequence[str]) -> None:
    try:
        forget_results(backend, task_ids)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Could not delete the ignored results of chord %s; they expire by themselves", group_id
        )


def _claims(backend: Any, group_id: str) -> int | None:
    """Claim a chord; return how many claims there are now, None where that is not counted."""
    return _incremented(backend, backend.get_key_for_chord(claim_id(group_id)))


def _incremented(backend: Any, key: Any) -> int | None:
    """Increment a counter; None where there is none, or the store does not answer."""
    for delay in (*INCREMENT_AGAIN_AFTER, None):
        try:
            value = backend.incr(key)
        except OUTSIDE:
            raise
        except Exception:  # noqa: BLE001 - whatever a driver raises
            if delay is None:
                return None
            time.sleep(delay)
        else:
            return None if value is None else int(value)
    return None


def _keep_alive(backend: Any, request: Any) -> None:
    """Have the counter expire later, and (from 5.7 on) what the last part reads, as Celery does."""
    counter = backend.get_key_for_chord(request.group)
    if not hasattr(backend, "chord_expires"):
        backend.expire(counter, backend.expires)
        return
    backend.expire(counter, backend.chord_expires)
    for key in (backend.get_key_for_group(request.group), backend.get_key_for_task(request.id)):
        backend.expire(key, backend._chord_result_expires)
