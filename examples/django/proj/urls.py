"""Start a chord from a web request; another request asks for its result."""

from celery import chord
from celery.result import AsyncResult
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from chordguard.django import apply_on_commit
from proj.tasks import collect, divide


@csrf_exempt
def start(request: HttpRequest) -> JsonResponse:
    """Start a chord of three tasks, one of which fails."""
    job = chord([divide.s(6, 3), divide.s(6, 0), divide.s(6, 2)], collect.s())
    return JsonResponse({"id": apply_on_commit(job).id})


def show(request: HttpRequest, task_id: str) -> JsonResponse:
    """Return the state of a chord's body, and its value once there is one."""
    result = AsyncResult(task_id)
    value = result.result if result.successful() else None
    return JsonResponse({"state": result.state, "value": value})


urlpatterns = [path("chords", start), path("chords/<str:task_id>", show)]
