"""A Django project without files: its settings, its database, its migrations.

A process has one Django, whose database is that of the stack it works on now: `use` changes it. In
a worker the environment variable of :data:`IN_WORKER` has Celery's own support for Django act, too.
"""

from __future__ import annotations

import copy
from typing import Any
from urllib.parse import unquote, urlsplit

#: What a worker has in its environment. The module is never imported: the settings are there then.
IN_WORKER = {"DJANGO_SETTINGS_MODULE": "tests.django.project"}

#: The result backends of the tests that are Django's, and the databases that they are on.
BACKENDS = {f"django-{kind}": kind for kind in ("sqlite", "postgresql", "mysql")}

#: What is installed unless a test says otherwise.
APPS = ("django_celery_results", "chordguard.django")

_ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}


def database_of(kind: str, url: str) -> dict[str, Any]:
    """Return the entry of ``DATABASES`` for a URL of SQLAlchemy's."""
    engine = f"django.db.backends.{_ENGINES[kind]}"
    if kind == "sqlite":
        # Two processes of a pool write at once.
        return {
            "ENGINE": engine,
            "NAME": url.removeprefix("sqlite:///"),
            "OPTIONS": {"timeout": 20},
        }
    parts = urlsplit(url)
    return {
        "ENGINE": engine,
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        # PyMySQL reads all certificates for each connection.
        "OPTIONS": {"ssl_disabled": True} if kind == "mysql" else {},
    }


def use(wanted: dict[str, Any]) -> None:
    """Let Django work with the project that `wanted` is: its ``databases`` and its ``apps``."""
    from django.apps import apps
    from django.conf import settings
    from django.db import connections

    import django

    if not settings.configured:
        _drive_mysql()
        settings.configure(
            # A copy: Django completes it, and `use` changes it.
            DATABASES=copy.deepcopy(wanted["databases"]),
            INSTALLED_APPS=wanted["apps"],
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            SECRET_KEY="tests",
            USE_TZ=True,
        )
        django.setup()
        return
    if [config.name for config in apps.get_app_configs()] != wanted["apps"]:
        settings.INSTALLED_APPS = wanted["apps"]
        apps.set_installed_apps(wanted["apps"])
    for alias in set(connections.settings) - set(wanted["databases"]):
        _forget(alias)
        del connections.settings[alias]
    for alias, given in wanted["databases"].items():
        known = connections.settings.get(alias, {})
        if known.get("NAME") != given["NAME"] or known.get("HOST", "") != given.get("HOST", ""):
            _forget(alias)
            completed = connections.configure_settings({"default": dict(given)})
            connections.settings[alias] = completed["default"]


def _forget(alias: str) -> None:
    from django.db import connections

    if alias in connections.settings:
        connections[alias].close()
        del connections[alias]


def _drive_mysql() -> None:
    """Have PyMySQL stand for mysqlclient, which has to be compiled."""
    import pymysql

    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()


def use_any() -> None:
    """Let this process have a Django, whose database is in memory; or keep the one that it has."""
    from django.conf import settings

    if not settings.configured:
        database = database_of("sqlite", "sqlite:///:memory:")
        use({"databases": {"default": database}, "apps": list(APPS)})


def migrate() -> None:
    """Create the tables of the project that this process uses."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0, interactive=False)
