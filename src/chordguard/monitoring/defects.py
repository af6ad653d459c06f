"""Which defects of the installed Celery are open for an app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .. import settings
from ..engine.patch import DJANGO, REDIS
from ..engine.report import Outcome
from ..patches import outcomes, registry
from ..upstream import backends, stores

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "backend_of",
    "defects",
    "is_counted",
)


def defects(app: Celery) -> list[str]:
    """Return a line for each defect of the installed Celery: which patch closes it, or why not.

    The ids are those of the README's table of patches. What the result backend of `app` does not
    have is left out, and what Celery documents: a patch that is off unless it is asked for.
    """
    names, lines = backends.names_of(app), []
    for outcome in outcomes(app):
        patch = registry[outcome.patch]
        if patch.is_opt_in and not patch.is_switched_on(app):
            continue
        if not patch.is_asked_for(app):
            continue
        why = _why_open(app, outcome)
        by = f"closed by {patch.name}" if why is None else f"open, {why}"
        lines += [f"{each.id}: {by} - {each.symptom}" for each in patch.defects_on(names)]
    return sorted(lines, key=lambda line: (line[0], int(re.findall(r"\d+", line)[0]), line))


def is_open(app: Celery, defect: str) -> bool:
    """Tell whether the installed Celery has a defect that no patch closes for `app`.

    Of a result backend that has no name for us, it is not known which defects it has: there all
    are open that no patch closes on every backend.
    """
    names = backends.names_of(app)
    concerned = {
        patch.name
        for patch in registry.values()
        if defect
        in (each.id for each in (patch.defects_on(names) if names else patch.defects_here()))
    }
    return bool(concerned) and all(
        _why_open(app, outcome) or not registry[outcome.patch].is_for(names)
        for outcome in outcomes(app)
        if outcome.patch in concerned
    )


def _why_open(app: Celery, outcome: Outcome) -> str | None:
    """Return why a patch, of which `outcome` tells, closes nothing for `app`; None: it does.

    One that waits is applied before the module that it mends is first used.
    """
    if outcome.status not in ("applied", "waiting"):
        return str(outcome)
    if registry[outcome.patch].needs_ledger and not is_counted(app):
        return f"{outcome.patch}: it needs the ledger, which this app does not keep"
    return None


def is_counted(app: Celery) -> bool:
    """Tell whether the chords of `app` are counted in its ledger.

    The server is not asked: on SQL the tables for it may be missing.
    """
    if stores.has_store(app):
        return True
    if not (settings.get(app, "chord_ledger") and backends.capabilities_of(app).keeps_ledger):
        return False
    names = backends.names_of(app)
    if REDIS in names:
        return registry["counted_parts"].is_active(app)
    if DJANGO in names:
        return backends.has_django_app() and registry["django_counted_chords"].is_active(app)
    from ..ledger.tables import DIALECTS

    return not names.isdisjoint(DIALECTS) and registry["counted_chords"].is_active(app)


def backend_of(app: Celery) -> Any:
    """Return the result backend of `app`; None where it cannot be loaded."""
    try:
        return app.backend
    except Exception:  # noqa: BLE001 - `why_unloadable` tells it
        return None
