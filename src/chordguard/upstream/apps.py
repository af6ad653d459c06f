"""Load the app that a command is asked about."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from .. import masking
from ..errors import ChordguardError, SettingError

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "CannotLoad",
    "finalize",
    "load_app",
    "prepare_app",
)


class CannotLoad(ChordguardError):
    """The app that was asked for cannot be loaded; the message says why."""


def load_app(name: str) -> Celery:
    """Return the app that ``celery -A name`` would use, with its tasks imported.

    Nothing is started and no table is created.

    Raises:
        CannotLoad: There is no such app, or importing it raised.
    """
    from celery import Celery
    from celery.app.utils import find_app

    try:
        app = find_app(name)
    except Exception as exc:
        raise CannotLoad(f"cannot load the app {name!r}: {masking.words_of(exc)}") from exc
    if not isinstance(app, Celery):
        raise CannotLoad(f"cannot load the app {name!r}: expected a Celery app, found {app!r}")
    return prepare_app(app, name)


def prepare_app(app: Celery, name: str) -> Celery:
    """Return `app`, which was asked for as `name`, with its tasks imported.

    Nothing is started and no table is created.

    Raises:
        CannotLoad: Importing its tasks raised.
    """
    try:
        app.loader.import_default_modules()
        # From 5.6 on a database backend would create its tables when it is looked at.
        app.conf.database_create_tables_at_setup = False
        with suppress(SettingError):  # `examine` tells it
            finalize(app)
    except Exception as exc:
        raise CannotLoad(
            f"cannot load the tasks of the app {name!r}: {masking.words_of(exc)}"
        ) from exc
    return app


def finalize(app: Celery) -> None:
    """Finalize the app.

    By way of its tasks, where that does it: a warning of Celery about one of them names the first
    caller outside of Celery, which shall not be this module.
    """
    if app.autofinalize:
        _ = app.tasks
    else:
        app.finalize()
