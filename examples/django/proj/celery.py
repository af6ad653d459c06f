"""The Celery app; `proj/__init__.py` imports it, so every Django process loads it."""

import os

from celery import Celery

from chordguard import install_patches

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["proj"])
install_patches(app)
