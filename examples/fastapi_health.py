"""A health endpoint for FastAPI: ``api.include_router(fastapi_health.router)``."""

from typing import Any

from fastapi import APIRouter, Response
from proj.celery import app

from chordguard import health_check

router = APIRouter()


# Not `async`: it may wait, so FastAPI calls it in a thread.
@router.get("/health/chords")
def chords(response: Response) -> dict[str, Any]:
    """Answer 200 while all is well, 503 while a chord is stuck or nothing can be known."""
    answer = health_check(app, max_age=6 * 3600)
    if answer["status"] != "healthy":
        response.status_code = 503
    return answer
