"""A Flask application that starts a chord; the worker imports the same module."""

from typing import Any

from celery import Celery, chord, shared_task
from celery.result import AsyncResult
from flask import Flask

from chordguard import install_patches


def celery_init_app(flask_app: Flask) -> Celery:
    """Make the Celery app of a Flask application."""
    celery_app = Celery(flask_app.name)
    celery_app.config_from_object(flask_app.config["CELERY"])
    install_patches(celery_app)
    celery_app.set_default()
    flask_app.extensions["celery"] = celery_app
    return celery_app


@shared_task
def divide(a: float, b: float) -> float:
    """Return a divided by b."""
    return a / b


@shared_task
def collect(results: list[Any]) -> list[Any]:
    """Return what the body of the chord receives."""
    return results


flask_app = Flask(__name__)
flask_app.config["CELERY"] = {
    "broker_url": "redis://localhost/0",
    "result_backend": "redis://localhost/1",
    "chord_propagate_errors": False,
}
app = celery_init_app(flask_app)


@flask_app.post("/chords")
def start() -> dict[str, str]:
    """Start a chord of three tasks, one of which fails."""
    result = chord([divide.s(6, 3), divide.s(6, 0), divide.s(6, 2)])(collect.s())
    return {"id": result.id}


@flask_app.get("/chords/<task_id>")
def show(task_id: str) -> dict[str, Any]:
    """Return the state of a chord's body, and its value once there is one."""
    result = AsyncResult(task_id, app=app)
    return {"state": result.state, "value": result.result if result.successful() else None}
