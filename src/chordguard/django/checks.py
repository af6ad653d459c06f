"""System checks: what of a project keeps its chords from being counted, or endangers them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from celery.utils.time import maybe_timedelta
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router

from ..engine.patch import is_patched
from ..upstream import backends
from .project import celery_app

__all__ = ("check_project", "check_tables")

#: Seconds below which `result_expires` is called too short.
SHORT_EXPIRY = 3600


@checks.register()
def check_project(**_: Any) -> list[checks.CheckMessage]:
    """Return what is wrong in the settings of the project."""
    app = celery_app()
    if app is None:
        return [
            checks.Warning(
                "The project has loaded no Celery app, so the processes that start chords do not "
                "have the patches.",
                hint="Import the Celery app in the __init__.py of the project's package.",
                id="chordguard.W001",
            )
        ]
    return list(_found(app))


def _found(app: Any) -> Iterator[checks.CheckMessage]:
    if not is_patched(app):
        yield checks.Warning(
            f"The Celery app {app.main!r} has not called chordguard.install_patches(app).",
            hint="Call it in the module that creates the app.",
            id="chordguard.W002",
        )
    if not _is_ours(app):
        yield checks.Warning(
            "chordguard.django is installed, and the result backend is not django-db: the app "
            "keeps nothing.",
            hint='Set result_backend = "django-db", or take chordguard.django out.',
            id="chordguard.W003",
        )
        return
    if not apps.is_installed("django_celery_results"):
        yield checks.Error(
            "The result backend is django-db, and django_celery_results is not installed.",
            hint='Add "django_celery_results" to INSTALLED_APPS.',
            id="chordguard.E001",
        )
        return
    results = router.db_for_write(apps.get_model("django_celery_results", "TaskResult"))
    ledger = router.db_for_write(apps.get_model("chordguard", "LiveChord"))
    if results != ledger:
        yield checks.Warning(
            f"Results are written to the database {results!r}, chords to {ledger!r}: a member is "
            "counted in another transaction than the one that stores its result.",
            hint="Have the router send both apps to the same database.",
            id="chordguard.W004",
        )
    if any(connection.settings_dict["ATOMIC_REQUESTS"] for connection in connections.all()):
        yield checks.Info(
            "ATOMIC_REQUESTS: the members of a chord that a view starts run before its transaction "
            "is committed, and do not see what it writes.",
            hint="Start such a chord with chordguard.django.apply_on_commit.",
            id="chordguard.I001",
        )
    expires = maybe_timedelta(app.conf.result_expires)
    if expires and expires.total_seconds() < SHORT_EXPIRY:
        yield checks.Warning(
            f"Results live for {expires.total_seconds():g} s: the body of a chord that takes "
            "longer never runs.",
            hint="Set result_expires to more than the longest chord takes, an hour at least.",
            id="chordguard.W005",
        )


def _is_ours(app: Any) -> bool:
    try:
        kind, _ = backends.class_and_url(app)
    except Exception:  # noqa: BLE001 - Celery itself tells of it
        return False
    django = backends.class_of(*backends.DJANGO_BACKEND)
    return isinstance(django, type) and issubclass(kind, django)


@checks.register(checks.Tags.database)
def check_tables(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Return whether the tables are missing; asked with ``check --database``."""
    model = apps.get_model("chordguard", "Counter")
    alias = router.db_for_write(model)
    if alias not in (databases or ()) or not settings.DATABASES:
        return []
    with connections[alias].cursor() as cursor:
        if model._meta.db_table in connections[alias].introspection.table_names(cursor):
            return []
    return [
        checks.Warning(
            f"The tables of chordguard are not in the database {alias!r}: chords are counted by "
            "django-celery-results alone.",
            hint="Run `manage.py migrate chordguard`.",
            id="chordguard.W006",
        )
    ]
