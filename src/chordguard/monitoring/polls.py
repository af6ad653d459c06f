"""For how long the chords of an app are polled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import settings
from ..lifecycle import safety_net
from ..lifecycle.polling import delay_before
from ..patches import registry
from ..upstream import backends, stores
from ..upstream.hooks import UNLOCK
from .defects import is_counted, is_open

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "annotations_of",
    "polls_are_ours",
    "short_polling",
    "stays_pending",
)

#: Seconds of polling below which a bound on the polls is called too low.
SHORT_POLLING = 60


def short_polling(app: Celery, task: Any) -> str | None:
    """Return a warning when the chords of `app` are looked at for less than a minute in all.

    Each look at a chord is a retry of `celery.chord_unlock`, whose bound comes from
    ``task_annotations`` or, with the patches, from ``chord_unlock_max_retries``. A chord that is
    counted is looked at late and slowly, by the safety net alone.

    Arguments:
        app: The app, configured.
        task: Its task ``celery.chord_unlock``.

    Returns:
        One line, or None where that lasts, or where this backend is not polled.
    """
    bound, source = _bound_of_polls(app, task)
    can = backends.capabilities_of(app)
    is_polled = (can.polls and not stores.has_store(app)) or _has_counter_net(app)
    if bound is None or not is_polled:
        return None
    has_net = _has_safety_net(app)
    looked_at, look = ("looked at", "look") if has_net else ("polled", "poll")
    seconds = safety_net.first_delay(app, None) if has_net else 0.0
    for retries in range(bound):
        if seconds >= SHORT_POLLING:
            break
        seconds += _delay_before(app, task, retries)
    if seconds >= SHORT_POLLING:
        return None
    return (
        f"{source} = {bound}: a chord is {looked_at} for about {seconds:.3g} s only, since each "
        f"{look} is a retry of {UNLOCK}; one whose header takes longer {_lost_how(app)}"
    )


def _bound_of_polls(app: Celery, task: Any) -> tuple[int | None, str]:
    """Return after how many retries polling ends, and the setting that says so."""
    bounds = []
    if task.max_retries is not None:
        bounds.append((int(task.max_retries), _source_of_bound(app)))
    if polls_are_ours(app):
        bound = settings.get(app, "chord_unlock_max_retries")
        if bound is not None:
            bounds.append((bound, "chord_unlock_max_retries"))
    return min(bounds, default=(None, ""))


def _source_of_bound(app: Celery) -> str:
    """Return the annotation that bounds the polls, the one that Celery applies last."""
    source = f"{UNLOCK}.max_retries"
    for key, attributes in annotations_of(app):
        if "max_retries" in attributes:
            source = f"task_annotations[{key!r}]['max_retries']"
    return source


def annotations_of(app: Celery) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the annotations of `celery.chord_unlock` with their keys; those for all tasks last."""
    task = app.tasks.get(UNLOCK)
    for annotation in app.annotations:
        if task is not None and hasattr(annotation, "annotate"):
            yield UNLOCK, annotation.annotate(task) or {}
    for annotation in app.annotations:
        if hasattr(annotation, "annotate_any"):
            yield "*", annotation.annotate_any() or {}


def _delay_before(app: Celery, task: Any, retries: int) -> float:
    if _has_safety_net(app) and app.conf.get("chord_unlock_retry_delay") is None:
        return safety_net.next_delay(app, retries)
    if polls_are_ours(app):
        return delay_before(app, task, retries)
    return float(task.default_retry_delay)


def polls_are_ours(app: Celery) -> bool:
    """Tell whether our settings say when the polling of a chord ends."""
    is_bounded = registry["bounded_unlock"].is_active(app)
    return _has_safety_net(app) or (is_bounded and backends.capabilities_of(app).polls)


def _has_safety_net(app: Celery) -> bool:
    """Tell whether `celery.chord_unlock` looks late and slowly: chords are counted."""
    return is_counted(app) or _has_counter_net(app)


def _has_counter_net(app: Celery) -> bool:
    has_counter = backends.capabilities_of(app).increments and not stores.has_store(app)
    return has_counter and registry["counter_safety_net"].is_active(app)


def _lost_how(app: Celery) -> str:
    if polls_are_ours(app):
        return "is settled without the members that are still running"
    return "stays PENDING for ever" if stays_pending(app) else "fails while its header still runs"


def stays_pending(app: Celery) -> bool:
    """Tell whether a chord stays PENDING when its polls have reached their bound."""
    return not polls_are_ours(app) and is_open(app, "C2")
