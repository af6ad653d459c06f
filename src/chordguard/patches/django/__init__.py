"""Fixes of the result backend of django-celery-results (``django-db``)."""
