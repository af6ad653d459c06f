"""Start a chord from a web request; another request asks for its result."""

from typing import Any

from celery import chord
from celery.result import AsyncResult
from fastapi import FastAPI
from proj import app, collect, divide

api = FastAPI()


@api.post("/chords")
def start() -> dict[str, str]:
    """Start a chord of three tasks, one of which fails."""
    result = chord([divide.s(6, 3), divide.s(6, 0), divide.s(6, 2)])(collect.s())
    return {"id": result.id}


@api.get("/chords/{task_id}")
def show(task_id: str) -> dict[str, Any]:
    """Return the state of a chord's body, and its value once there is one."""
    result = AsyncResult(task_id, app=app)
    return {"state": result.state, "value": result.result if result.successful() else None}
