"""What holds for the chords of an app: counted in a ledger, by Celery, polled, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..upstream import backends, stores
from .defects import is_counted

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "FOR_MORE",
    "lacking",
    "standing",
)

#: What to do where the result backend of an app keeps no ledger.
FOR_MORE = "set chord_ledger_url (a SQL database or Redis), and they are counted in a ledger there"

#: What a chord without a ledger has to do without.
LACKING = (
    "it is not listed by `chordguard chords`, and one whose member is lost is settled "
    "only after chord_timeout"
)


def standing(app: Celery) -> str:
    """Return one line: what holds for the chords of `app`, and what to do for more.

    The result backend is not made for it, and not connected to.
    """
    if stores.has_store(app):
        return (
            f"chords are counted in the ledger at {stores.address(app)}, beside the results, "
            "and looked after by the watchdog of each worker"
        )
    if is_counted(app):
        return "chords are counted in the ledger, and looked after by the watchdog of each worker"
    lacks = lacking(app)
    return f"{lacks[0]}; {lacks[1]}" if lacks else ""


def lacking(app: Celery) -> tuple[str, str] | None:
    """Return what the chords of `app` lack without a ledger, and what to do about it.

    None where they are counted in one.
    """
    if is_counted(app):
        return None
    if (why := backends.why_unloadable(app)) is not None:
        return why, "correct result_backend, or install the driver that it needs"
    kind, _ = backends.class_and_url(app)
    can = backends.capabilities(kind)
    name = f"{kind.__module__}.{kind.__name__}"
    if not can.takes_chords:
        if kind.__name__ == "DisabledBackend":
            return "the app has no result backend: Celery refuses chords", FOR_MORE
        return f"Celery refuses chords on the result backend {name}", FOR_MORE
    if (why := backends.why_without_ledger(app)) is not None:
        return why, f'add "{backends.DJANGO_APP}" to INSTALLED_APPS and run `manage.py migrate`'
    how = "polled by celery.chord_unlock" if can.polls else "counted by Celery alone"
    more = "set chord_ledger = True" if can.keeps_ledger else FOR_MORE
    return f"chords on {name} are {how}, without a ledger: {LACKING}", more
