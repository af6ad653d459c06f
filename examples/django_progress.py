"""A chord's progress as server-sent events, by async views.

In urls.py:

    path("chords/<str:chord_id>/events", django_progress.events)
    path("chords/<str:chord_id>", django_progress.value)

Run Django under ASGI: under WSGI each client that waits takes a thread.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict

from celery.exceptions import TimeoutError as NotInTime
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from proj.celery import app

from chordguard.aio import aget, aprogress

#: Seconds that a client is kept waiting.
PATIENCE = 600


# `chord_id`: the id of the result that starting the chord gave, `result.id`.
async def events(request: HttpRequest, chord_id: str) -> StreamingHttpResponse:
    """Send how far a chord is whenever that changes, until it has ended."""
    return StreamingHttpResponse(_events(chord_id), content_type="text/event-stream")


async def _events(chord_id: str) -> AsyncIterator[str]:
    try:
        async for found in aprogress(chord_id, app, timeout=PATIENCE):
            yield f"data: {json.dumps(asdict(found))}\n\n"
    except NotInTime:
        yield "event: timeout\ndata: {}\n\n"


async def value(request: HttpRequest, chord_id: str) -> JsonResponse:
    """Answer with what the chord's body returned, once it has."""
    try:
        return JsonResponse({"value": await aget(app.AsyncResult(chord_id), timeout=PATIENCE)})
    except NotInTime:
        return JsonResponse({"error": "not ready yet"}, status=504)
