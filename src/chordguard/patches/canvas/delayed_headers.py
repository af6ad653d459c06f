"""`countdown` or `eta` of a chord delays its body, or its poller, instead of its header.

Up to 5.6 `_chord.apply_async` hands them to the body, and `_chord.run` takes `countdown` for the
delay of `celery.chord_unlock`. Here they delay the header, as from 5.7 on, and nothing else.
https://github.com/celery/celery/issues/7851
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ..._patch import Patch, celery_5_7

patch = Patch(
    name="delayed_headers",
    defects={"D10": "countdown or eta of a chord delays the body, not the header"},
    until=celery_5_7,
)

DELAYS = ("countdown", "eta")

#: What `apply_async` was given, until the run of that chord takes it.
_asked: ContextVar[dict[str, Any] | None] = ContextVar("chordguard_asked", default=None)
#: The header that is about to be sent, and its delay.
_delayed: ContextVar[tuple[Any, dict[str, Any]] | None] = ContextVar(
    "chordguard_delayed", default=None
)


@patch.wraps("celery.canvas", "_chord.apply_async")
def apply_async(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    asked = {**_delay_in(chord.options), **(_asked.get() or {}), **_delay_in(kwargs)}
    if not asked:
        return wrapped(*args, **kwargs)
    if _delay_in(chord.options):
        chord = chord.clone()
        chord["options"] = _without_delay(chord.options)
        wrapped = chord.apply_async
    token = _asked.set(asked)
    try:
        return wrapped(*args, **_without_delay(kwargs))
    finally:
        _asked.reset(token)


@patch.wraps("celery.canvas", "_chord.run")
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    asked = _asked.get()
    if not asked:
        return wrapped(*args, **kwargs)
    tokens = _asked.set(None), _delayed.set((args[0] if args else kwargs["header"], asked))
    try:
        return wrapped(*args, **kwargs)
    finally:
        _asked.reset(tokens[0])
        _delayed.reset(tokens[1])


def _delay_in(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in DELAYS if options.get(key) is not None}


def _without_delay(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in options if key not in DELAYS}


@patch.wraps("celery.canvas", "group.apply_async")
def send_header(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    header, delay = _delayed.get() or (None, {})
    if header is not group:
        return wrapped(*args, **kwargs)
    token = _delayed.set(None)
    try:
        return wrapped(*args, **{**kwargs, **delay})
    finally:
        _delayed.reset(token)
