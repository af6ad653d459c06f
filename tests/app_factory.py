"""Build the Celery app that the producer (the test) and the workers of one cluster share."""

from __future__ import annotations

import importlib
from typing import Any

from celery import VERSION, Celery
from kombu import Exchange, Queue

from tests import old_celery  # noqa: F401 - has to come before Celery looks for backends

#: Seconds until a queue that a killed test left on RabbitMQ goes away.
QUEUE_EXPIRES = 600


def make_app(config: dict[str, Any], patched: bool) -> Celery:
    """Return an app made from `config`, the JSON-safe dictionary of `harness.Stack.config`.

    `config` has the keys ``name`` (of the app and its queue), ``settings`` (Celery's) and
    ``tasks`` (module with a function ``register(app)``). chordguard is imported only if `patched`.
    """
    app = Celery(config["name"])
    app.conf.update(config["settings"])
    if app.conf.result_backend.startswith("redis") and VERSION[:2] < (5, 3):
        app.conf.result_backend = f"tests.old_redis:PrefixedRedisBackend+{app.conf.result_backend}"
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
