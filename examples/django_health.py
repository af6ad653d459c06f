"""A health endpoint for Django. In urls.py: ``path("health/chords", django_health.chords)``."""

from django.http import HttpRequest, JsonResponse
from proj.celery import app

from chordguard import health_check


def chords(request: HttpRequest) -> JsonResponse:
    """Answer 200 while all is well, 503 while a chord is stuck or nothing can be known."""
    answer = health_check(app, max_age=6 * 3600)
    return JsonResponse(answer, status=200 if answer["status"] == "healthy" else 503)
