"""What is known of a task that did not run, when all there is of it is its message."""

from __future__ import annotations

from typing import Any

from ..ledger.access import ledger_of
from ..ledger.checked import body_of
from ..ledger.packing import leaf_ids
from ..log import warn_once

__all__ = (
    "member_of",
    "request_of",
)


def request_of(message: Any) -> Any:
    """Return the request that the task of a `message`, of either protocol, would have had.

    None where its body cannot be read, or has a serializer that the app does not accept.
    """
    from celery.app.task import Context

    try:
        payload = None if message.errors else message.payload
    except Exception:  # noqa: BLE001 - the worker logs it
        return None
    if isinstance(payload, dict):  # protocol 1
        return Context(payload, group=payload.get("taskset"))
    if not isinstance(payload, (list, tuple)) or len(payload) != 3:
        return None
    args, kwargs, embed = payload
    return Context({**message.headers, **(embed or {})}, args=args, kwargs=kwargs)


def member_of(backend: Any, message: Any) -> Any:
    """Return the request of a chord's member whose `message` has a body that cannot be read.

    Its headers (protocol 2) tell the group, the ledger whether that is a chord, and of which body.
    Where that cannot be read either, the request has none: it is stored as failed, but only who
    can read the body counts it.

    Arguments:
        backend: The result backend.
        message: The message.

    Returns:
        None where the ledger knows no live chord with such a member.
    """
    from celery.app.task import Context

    task_id, group_id = message.headers.get("id"), message.headers.get("group")
    ledger = ledger_of(backend) if task_id and group_id else None
    record = None if ledger is None else ledger.read(group_id)
    if record is None or not _is_member(task_id, record.header):
        return None
    try:
        body, damage = body_of(backend.app, record.body) if record.body else (None, None)
        if damage is not None:
            body = None
    except Exception:  # noqa: BLE001 - it is logged
        warn_once(
            "Cannot read the body of chord %s here; the watchdog of another worker will retry",
            group_id,
        )
        body = None
    return Context(message.headers, chord=body)


def _is_member(task_id: str, header: Any) -> bool:
    # The members of a generator are not known before the last one is sent.
    return header is None or task_id in leaf_ids(header)
