"""A result backend of somebody else; Celery polls its chords."""

from __future__ import annotations

from celery.backends.base import BaseBackend

#: What an app is given to use it.
URL = "tests.unit.monitoring.plain_backend:PlainBackend"


class PlainBackend(BaseBackend):
    """Keeps nothing."""
