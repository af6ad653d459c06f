"""The errbacks of a chord: which are called when it fails, each of them once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OUTSIDE
from ..policy import tolerates
from ..upstream.signatures import (
    as_list,
    chained_after,
    chord_of,
    giving,
    kind_of,
    options_of,
    request_of,
    task_ids,
    tasks_of,
    waiting_for,
)

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "call_errbacks",
    "left_to_chord",
    "left_to_outer",
    "with_errbacks_once",
)

logger = logging.getLogger("chordguard")


def call_errbacks(
    backend: Any,
    body: Mapping[str, Any],
    exc: BaseException,
    *,
    task_id: str | None = None,
    is_eager: bool = False,
) -> None:
    """Call each errback once for each result of the `body` that carries it, as Celery 5.7 does.

    That is once for a task, and once for each task of a group. What the body of a strict chord
    around this one calls, too, is left to that one (`Backend._handle_group_chord_error`).

    Arguments:
        backend: The result backend.
        body: The frozen signature of the body, or the same as data.
        exc: Why the chord failed.
        task_id: The id of the body's result, where the body has none.
        is_eager: Whether errbacks are called in this process.
    """
    left = left_to_outer(backend.app, body)
    for signature, errbacks in _carriers(body):
        request = request_of(signature)
        ids = task_ids(waiting_for(signature, follow_chain=False))
        request.id = request.id or next(reversed(ids), task_id)
        request.delivery_info = {"is_eager": is_eager}
        request.errbacks = _each_once(errbacks, left)
        if request.errbacks:
            try:
                backend._call_task_errbacks(request, exc, None)
            except OUTSIDE:
                raise
            except Exception:
                logger.exception("An errback of the chord body %s raised an exception", request.id)


def _carriers(
    signature: Any, inherited: Sequence[Any] = ()
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """Yield the parts of `signature` that give its results, each with the errbacks to call.

    A group hands its errbacks to its tasks, a chord to its body. A chain gives one result, but its
    first task, which would have run by now, calls errbacks of its own, too.
    """
    errbacks = [*inherited, *as_list(options_of(signature).get("link_error"))]
    kind = kind_of(signature)
    parts = giving(signature) if kind in ("group", "chord") else None
    if parts:
        for part in parts:
            yield from _carriers(part, errbacks)
        return
    yield signature, errbacks
    for first in tasks_of(signature)[:1] if kind == "chain" else ():
        for carrier, others in _carriers(first):
            yield carrier, [errback for errback in others if errback not in errbacks]


def left_to_outer(app: Celery, body: Mapping[str, Any]) -> list[Any]:
    """Return the errbacks that the chord around this one calls when it fails in its turn.

    Celery links an errback of the outer chord to the bodies of the chords in its header, too.
    """
    outer = chord_of(waiting_for(body))
    return [] if outer is None or tolerates(app, outer) else _errbacks_of(outer)


def with_errbacks_once(app: Celery, body: Any) -> Any:
    """Return `body` with each errback of its own once, without what is left to the outer chord."""
    errbacks = as_list(body.options.get("link_error"))
    kept = _each_once(errbacks, left_to_outer(app, body)) if errbacks else errbacks
    if len(kept) == len(errbacks):
        return body
    body = body.clone()
    body.options["link_error"] = kept
    return body


def left_to_chord(request: Any) -> list[Any]:
    """Return the errbacks of a header task that are not its own: its chord calls them.

    With ``task_allow_error_cb_on_chord_header`` Celery links copies of a chord's errback to the
    tasks of its header.
    """
    copies = [errback for errback in as_list(request.errbacks) if _is_copy(errback)]
    if not copies:
        return []
    chord = request.chord or chord_of(chained_after(request))
    called = [] if chord is None else _errbacks_of(chord)
    return [copy for copy in copies if _as_linked(copy) in called]


def _errbacks_of(body: Mapping[str, Any]) -> list[Any]:
    """Return the errbacks that are called when the chord with this `body` fails."""
    return [_as_linked(errback) for _, errbacks in _carriers(body) for errback in errbacks]


def _each_once(errbacks: Iterable[Any], called: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for errback in map(_as_linked, errbacks):
        if errback not in called and errback not in kept:
            kept.append(errback)
    return kept


def _is_copy(errback: Mapping[str, Any]) -> bool:
    # `clone(immutable=True)`, of which Celery makes an option, not an immutable signature.
    return bool(options_of(errback).get("immutable"))


def _as_linked(errback: Any) -> Any:
    """Return the errback of which Celery linked the copy `errback`."""
    if not _is_copy(errback):
        return errback
    options = {key: value for key, value in errback["options"].items() if key != "immutable"}
    linked = errback.clone() if hasattr(errback, "clone") else dict(errback)
    linked["options"] = options
    return linked
