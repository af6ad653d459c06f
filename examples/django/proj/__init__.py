"""A Django project whose chords tolerate failed header tasks; its database stores the results."""

from .celery import app as celery_app

__all__ = ("celery_app",)
