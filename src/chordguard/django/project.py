"""The Celery app of a Django project."""

from __future__ import annotations

from typing import Any

from celery import _state

__all__ = ("celery_app",)


def celery_app() -> Any:
    """Return the Celery app that the project has made; None where it has not loaded one."""
    # Asked for the current app, Celery would make one.
    return getattr(_state._tls, "current_app", None) or _state.default_app
