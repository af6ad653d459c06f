"""Fixes of django-celery-results, on a Django project with real workers."""
