"""A chord that cannot be sent completely leaves a poller, keys and rows behind.

`_chord.run` tells the backend of the chord before its members are sent. When one of them cannot be
encoded, or the broker goes away, the caller gets the error, and what was told stays: on SQL
`celery.chord_unlock` polls for ever. Here the poller is sent just before the last member, without
which no chord ends, and what is left of a chord whose last member was not sent is taken away.
https://github.com/celery/celery/issues/1700
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from ...engine.patch import Defect, Patch
from ...ledger.access import ledger_of
from ...lifecycle import incrementing, starting
from ...log import warn_once
from ...upstream import backends, publishing

logger = logging.getLogger("chordguard")

patch = Patch(
    "half_sent_chords",
    Defect("C3", "a chord that cannot be sent leaves a poller, keys and rows behind"),
)


def _app_of_run(*_: Any) -> Any:
    run = starting.run_now()
    return None if run is None else run.header.app


@patch.wraps("celery.canvas", "_chord.run")
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    run = starting.run_now()
    if run is None:
        return wrapped(*args, **kwargs)
    is_closed = False
    try:
        result = wrapped(*args, **kwargs)
        _send_poller(run)
    except BaseException:
        # One that may have been sent completely is left to itself, or to its timeout.
        is_closed = not run.may_be_whole and run.group_id is not None
        if is_closed:
            _close(run)
        raise
    finally:
        if run.outer is not None and not is_closed:
            run.outer.sends(is_last=run.outer.is_last)
    return result


@patch.wraps("celery.canvas", "group._apply_tasks", takes={"tasks": 0})
def apply_tasks(wrapped: Any, group: Any, args: Any, kwargs: Any, *, tasks: Any) -> Any:
    run = starting.run_now()
    if run is None or run.header is not group:
        return wrapped(*args, **kwargs)
    return wrapped(_until_last(tasks, run), *args[1:], **kwargs)


def _until_last(tasks: Any, run: starting.Run) -> Iterator[Any]:
    """Yield the members; Celery asks for one more before it sends the last one."""
    yield from tasks
    _send_poller(run)
    run.is_last = True


@patch.wraps("celery.backends.base", "Backend.fallback_chord_unlock", takes={"header_result": 0})
def fallback_chord_unlock(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result: Any
) -> Any:
    run = starting.run_of(header_result.id)
    if run is None or run.is_last or starting.is_lazy(header_result.results):
        return wrapped(*args, **kwargs)
    run.send_poller = lambda: wrapped(*args, **kwargs)
    return None


def _send_poller(run: starting.Run) -> None:
    send, run.send_poller = run.send_poller, None
    if send is not None:
        send()


@patch.wraps_task("celery.chord_unlock", "apply_async")
def note_poller(wrapped: Any, task: Any, args: Any, kwargs: Any) -> Any:
    sent = wrapped(*args, **kwargs)
    given = (args[0] if args else kwargs.get("args")) or ("",)
    run = starting.run_of(given[0])
    if run is not None:
        run.poller = sent.id
    return sent


@patch.wraps("kombu.messaging", "Producer._publish", app_of=_app_of_run)
def publish(wrapped: Any, producer: Any, args: Any, kwargs: Any) -> Any:
    run = starting.run_now()
    if run is not None:
        # It connects: what fails before that has sent nothing.
        _ = producer.channel
        publishing.when_sent(producer, partial(run.sends, is_last=run.is_last))
    return wrapped(*args, **kwargs)


def _close(run: starting.Run) -> None:
    """Take away what the backend and the broker know of a chord that was not sent completely."""
    app, group_id = run.header.app, run.group_id
    backend = app.backend
    try:
        # On Redis Celery's own keys are taken away, too.
        ledger = ledger_of(backend, asked=not backends.is_redis(backend))
        if ledger is not None:
            ledger.abandon(group_id, is_known=run.has_sent)
        if backends.capabilities(backend).increments:
            incrementing.forget(backend, group_id)
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Chord %s was not sent completely; could not remove what it left behind", group_id
        )
    if run.poller is not None:
        try:
            app.control.revoke(run.poller)
        except Exception:  # noqa: BLE001 - it is logged
            warn_once("Chord %s was not sent completely; could not revoke its poller", group_id)
