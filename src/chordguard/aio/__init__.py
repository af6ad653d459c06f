"""Await chords in asyncio: their results, and how far they are, without a thread for each.

    from chordguard.aio import aget, aprogress

    async for found in aprogress(result):
        print(found.percent)
    value = await aget(result, timeout=60)

All that one event loop waits for is asked for together (see :mod:`.hub`): announced results on
Redis come by one subscription; else one statement, or command, an interval asks for all of them.
Nothing of this is imported by `import chordguard`, nor by workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery.exceptions import TimeoutError as NotInTime
from celery.result import EagerResult, assert_will_not_block

from ..lifecycle.progress import Progress, id_of, progress, progress_of
from ..lifecycle.waiting import ParentsWatch
from ..upstream import backends
from ..upstream.awaited import leaves_of
from .hub import Found, Hub, hub_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("aget", "aprogress")

#: Seconds between two looks at how far a chord is.
INTERVAL = 0.5


async def aget(
    result: Any,
    timeout: float | None = None,
    propagate: bool = True,
    *,
    follow_parents: bool = True,
    disable_sync_subtasks: bool = True,
) -> Any:
    """Await the value of a result: what `result.get()` returns and raises.

    Arguments:
        result: That of a chord, a task, a chain or a group.
        timeout: Seconds after which it is given up; None: never.
        propagate: Raise the error of a task that failed, rather than return it.
        follow_parents: Raise the error of a task before it, such as a member of a chord's header.
        disable_sync_subtasks: Refuse to wait within a task, as `get()` does.

    Raises:
        celery.exceptions.TimeoutError: It was not ready in time.
        RuntimeError: It was called within a task.
    """
    if isinstance(result, EagerResult):
        return result.get(propagate=propagate)
    if getattr(result, "ignored", False):
        return None
    if disable_sync_subtasks:
        assert_will_not_block()
    hub = hub_of(result.app)
    leaves = {leaf.id: leaf for leaf in leaves_of(result)}
    is_following = propagate and follow_parents and hasattr(result, "_parents")
    parents = list(result._parents()) if is_following else []
    until = None if timeout is None else asyncio.get_running_loop().time() + timeout
    while True:
        found, has_failed = await _all_of(hub, leaves, parents, until, propagate)
        if not has_failed:
            return _value_of(result, found)
        await hub.in_thread(partial(_raise, result, parents, leaves, found))
        # The results of the members that failed are not stored: the body's tells of them.
        parents = []


async def _all_of(
    hub: Hub, leaves: dict[str, Any], parents: list[Any], until: float | None, propagate: bool
) -> tuple[dict[str, Found], bool]:
    """Wait for the results of all `leaves`; with `propagate` for the first error, too.

    Returns:
        What was found, by id; whether it is an error that is to be raised.
    """
    loop = asyncio.get_running_loop()
    wanted = {hub.result(task_id): task_id for task_id in leaves}
    watched = set(_failures_of(hub, parents))
    found: dict[str, Found] = {}
    try:
        while wanted:
            rest = None if until is None else max(0.0, until - loop.time())
            pending = {*wanted, *watched}
            done, _ = await asyncio.wait(pending, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise NotInTime("The operation timed out.")
            found.update((wanted.pop(future), future.result()) for future in done & {*wanted})
            has_failed = [future.result().has_failed for future in done & watched]
            watched -= done
            if propagate and (any(has_failed) or any(one.has_failed for one in found.values())):
                return found, True
        return found, False
    finally:
        for future in (*wanted, *watched):
            future.cancel()


def _failures_of(hub: Hub, parents: list[Any]) -> Iterator[asyncio.Future[Found]]:
    """Yield what is done when a parent is, or when a member of a header has failed."""
    for node in parents:
        if getattr(node, "results", None) is not None:
            yield hub.failure(node.id)
        else:
            yield hub.result(node.id)


def _raise(
    result: Any, parents: list[Any], leaves: dict[str, Any], found: dict[str, Found]
) -> None:
    """Raise the error that `get()` would raise, if there is one; in a thread."""
    if parents and backends.takes_chords(result.backend):
        ParentsWatch(result, parents).look_once()
    else:
        for node in reversed(parents):
            node.maybe_throw()
    for task_id, one in found.items():
        if one.has_failed:
            leaves[task_id].maybe_throw()


def _value_of(result: Any, found: dict[str, Found]) -> Any:
    members = getattr(result, "results", None)
    if members is not None:
        return [_value_of(member, found) for member in members]
    one = found[result.id]
    if one.meta is not None:
        result._maybe_set_cache(one.meta)
        return result.result
    return result.backend.exception_to_python(one.value) if one.has_failed else one.value


async def aprogress(
    chord: str | Any,
    app: Celery | None = None,
    *,
    interval: float = INTERVAL,
    timeout: float | None = None,
) -> AsyncIterator[Progress]:
    """Yield how far a chord is: at once, whenever that has changed, and when it has ended.

    Arguments:
        chord: As :func:`chordguard.progress` takes it.
        app: Its app; None: that of the result, or the current one.
        interval: Seconds between two looks.
        timeout: Seconds after which it is given up; None: never.

    Raises:
        celery.exceptions.TimeoutError: The chord did not end in time.
        LedgerMissing, TypeError: As :func:`chordguard.progress`.
    """
    chord_id = id_of(chord)
    app = app or getattr(chord, "app", None) or current_app._get_current_object()
    hub, loop = hub_of(app), asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + timeout
    last: tuple[Any, ...] | None = None
    while True:
        asked = hub.tally(chord_id, 0.0 if last is None else interval)
        try:
            rest = None if until is None else max(0.0, until - loop.time())
            await asyncio.wait({asked}, timeout=rest)
            if not asked.done():
                raise NotInTime("The operation timed out.")
        finally:
            asked.cancel()
        tally = asked.result()
        if tally is not None:
            found = progress_of(tally)
        else:
            # Without a ledger, or not known to it: the slow answer, or an error that says why.
            found = await hub.in_thread(partial(progress, chord, app))
        told = (found.state, found.total, found.done, found.failed)
        if told != last:
            last = told
            yield found
        if found.has_ended:
            return
