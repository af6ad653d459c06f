"""Build the Celery app that the producer (the test) and the workers of one cluster share."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from types import SimpleNamespace
from typing import Any

import celery.utils.imports
from celery import Celery
from kombu import Exchange, Queue

#: Seconds until a queue that a killed test left on RabbitMQ goes away.
QUEUE_EXPIRES = 600


if celery.__version__ == "5.2.7":
    # So that the oldest Celery can be tested on every Python; by itself it stops at 3.11.
    if sys.version_info >= (3, 12):
        # It asks for its backends' entry points in a way that is gone, and so finds no backend.
        celery.utils.imports.entry_points = lambda: SimpleNamespace(
            get=lambda group, default: importlib.metadata.entry_points(group=group)
        )
    if sys.version_info >= (3, 13):
        # Its billiard takes the lock of logging through functions that are gone.
        logging._acquireLock = logging._lock.acquire
        logging._releaseLock = logging._lock.release


def make_app(config: dict[str, Any], patched: bool) -> Celery:
    """Return an app made from `config`, the JSON-safe dictionary of `harness.Stack.config`.

    `config` has the keys ``name`` (of the app and its queue), ``settings`` (Celery's) and
    ``tasks`` (module with a function ``register(app)``). chordguard is imported only if `patched`.
    """
    app = Celery(config["name"])
    app.conf.update(config["settings"])
    if app.conf.broker_url.startswith("amqp"):
        name = config["name"]
        app.conf.task_queues = [
            Queue(name, Exchange(name, auto_delete=True), routing_key=name, expires=QUEUE_EXPIRES)
        ]
    importlib.import_module(config["tasks"]).register(app)
    if patched:
        from chordguard import install_patches

        install_patches(app)
    return app
