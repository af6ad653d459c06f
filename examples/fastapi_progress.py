"""A chord's progress as server-sent events: ``api.include_router(fastapi_progress.router)``."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from celery.exceptions import TimeoutError as NotInTime
from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from proj.celery import app

from chordguard.aio import aget, aprogress

router = APIRouter()

#: Seconds that a client is kept waiting.
PATIENCE = 600


# `chord_id`: the id of the result that starting the chord gave, `result.id`.
@router.get("/chords/{chord_id}/events")
async def events(chord_id: str) -> StreamingResponse:
    """Send how far a chord is whenever that changes, until it has ended."""
    return StreamingResponse(_events(chord_id), media_type="text/event-stream")


async def _events(chord_id: str) -> AsyncIterator[str]:
    try:
        async for found in aprogress(chord_id, app, timeout=PATIENCE):
            yield f"data: {json.dumps(asdict(found))}\n\n"
    except NotInTime:
        yield "event: timeout\ndata: {}\n\n"


@router.get("/chords/{chord_id}")
async def value(chord_id: str) -> dict[str, Any]:
    """Answer with what the chord's body returned, once it has."""
    try:
        return {"value": await aget(app.AsyncResult(chord_id), timeout=PATIENCE)}
    except NotInTime:
        raise HTTPException(504, "not ready yet") from None
