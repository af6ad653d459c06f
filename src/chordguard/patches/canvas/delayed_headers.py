"""`countdown` or `eta` of a chord delays its body, or its poller, instead of its header.

Up to 5.6 `_chord.apply_async` hands them to the body, and `_chord.run` takes `countdown` for the
delay of `celery.chord_unlock`. Here they delay the header, as from 5.7 on, and nothing else.
https://github.com/celery/celery/issues/7851
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7
from ...lifecycle import starting

patch = Patch(
    "delayed_headers",
    Defect("D10", "countdown or eta of a chord delays the body, not the header", until=celery_5_7),
)

DELAYS = ("countdown", "eta")


@patch.wraps("celery.canvas", "_chord.apply_async")
def apply_async(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    run = starting.entered()
    if run is None:
        return wrapped(*args, **kwargs)
    run.delay = {**_delay_in(chord.options), **run.delay, **_delay_in(kwargs)}
    if _delay_in(chord.options):
        chord = chord.clone()
        chord["options"] = _without_delay(chord.options)
        wrapped = chord.apply_async
    return wrapped(*args, **_without_delay(kwargs))


@patch.wraps("celery.canvas", "group.apply_async")
def send_header(wrapped: Any, group: Any, args: Any, kwargs: Any) -> Any:
    run = starting.run_now()
    if run is None or run.header is not group:
        return wrapped(*args, **kwargs)
    delay, run.delay = run.delay, {}
    return wrapped(*args, **{**kwargs, **delay})


def _delay_in(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in DELAYS if options.get(key) is not None}


def _without_delay(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in options if key not in DELAYS}
