"""Django: one failed member and the body never runs; a chord reads its results one by one.

When the counter of django-celery-results is down to zero it asks for each member's row, then reads
each again and joins them as `celery.chord_unlock` did long ago: a failed member is never tolerated,
the error names none, and a good chord fails whose results take over three seconds to read. Here the
results are read at once and the chord ends by its policy. One that is not ready, since a member was
counted twice, is polled until it is.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...engine.patch import Defect, Patch
from ...lifecycle.ending import Ending
from ...lifecycle.polling import PolledHeader
from ...policy import Policy
from ...upstream.results import read_results

patch = Patch(
    "django_tolerant_parts",
    Defect("A1", "Django: one failing header task and the body never runs"),
    Defect("J9", "Django: the error of a failed chord names no member"),
    Defect("J10", "Django: N members take N + 4 statements to end; a good chord fails after 3 s"),
    driver="django_celery_results",
)

MODULE = "django_celery_results.backends.database"


@dataclass
class _Counting:
    """A part that is counted; once that is the last one, its counter is gone."""

    app: Any
    is_last: bool = False


#: The part that is being counted: `on_chord_part_return` sets and resets it.
_counting: ContextVar[_Counting | None] = ContextVar("chordguard_counting", default=None)


def _app_of_counting(*_: Any) -> Any:
    return getattr(_counting.get(), "app", None)


@patch.wraps(MODULE, "DatabaseBackend.on_chord_part_return")
def on_chord_part_return(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    from django_celery_results.models import ChordCounter

    from ...upstream import django

    token = _counting.set(counting := _Counting(backend.app))
    try:
        # SQLite refuses one of two that read the counter, and then write it.
        return django.with_retries(
            backend,
            django.alias_of(ChordCounter),
            partial(wrapped, *args, **kwargs),
            lambda: not counting.is_last,
        )
    finally:
        _counting.reset(token)


@patch.wraps("django_celery_results.models", "ChordCounter.group_result", app_of=_app_of_counting)
def group_result(wrapped: Any, counter: Any, args: Any, kwargs: Any) -> Any:
    counting = _counting.get()
    header = wrapped(*args, **kwargs)
    if counting is None:
        return header
    counting.is_last = True
    return _Header(header.id, header.results, app=counting.app)


class _Header(PolledHeader):
    """The results of a header whose counter is down to zero."""

    def ready(self) -> bool:
        """Say yes: `trigger_callback` finds out what to do."""
        return True


@patch.wraps(MODULE, "trigger_callback", app_of=_app_of_counting)
def trigger_callback(wrapped: Any, _: Any, args: Any, kwargs: Any) -> None:
    given = dict(zip(("app", "callback", "group_result"), args, strict=False)) | kwargs
    app, body, header = given["app"], given["callback"], given["group_result"]
    if not isinstance(header, _Header):
        wrapped(*args, **kwargs)
    elif not PolledHeader.ready(header):
        app.backend.fallback_chord_unlock(header, body)
    else:
        results = read_results(app.backend, header.ids)
        ending = Ending(app, header.id, body, Policy.of(app, body), header.header, results)
        ending.publish_or_fail()
