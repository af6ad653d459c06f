"""What `tolerant()` and `strict()` chose for a chord must reach its body, and no other.

The choice travels in the headers of the body. `chord.apply_async(headers=...)` replaces the
body's headers, and a chord that is itself a body hands its own headers on to its body.
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import Defect, Patch
from ...policy import HEADER, choice_in, choice_of

patch = Patch(
    "per_chord_choice",
    Defect("A1", "a choice made per chord is lost, or leaks into the chord that is its body"),
)


@patch.wraps("celery.canvas", "_chord.apply_async")
def apply_async(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    body = (kwargs.get("kwargs") or {}).get("body") or chord.kwargs.get("body")
    choice = choice_of(body)
    if "headers" in kwargs:
        kwargs = {**kwargs, "headers": _with_choice(kwargs["headers"], choice)}
    if choice_in(chord.options) is not None:
        # It was made for the chord whose body this one is, and that has ended.
        chord.options["headers"] = _with_choice(chord.options["headers"], choice)
    return wrapped(*args, **kwargs)


def _with_choice(headers: Any, choice: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    kept.update((key, value) for key, value in (headers or {}).items() if key != HEADER)
    if choice is not None:
        kept[HEADER] = choice
    return kept
