"""Build the Celery app that the producer (the test) and the workers of one cluster share."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celery import VERSION, Celery
from kombu import Exchange, Queue

from tests import old_celery  # noqa: F401 - has to come before Celery looks for backends
from tests.django import project

#: Seconds until a queue that a killed test left on RabbitMQ goes away.
QUEUE_EXPIRES = 600


class LiveSettings(Mapping[str, Any]):
    """Settings that the processes of a cluster read from a file each time they use one.

    The tests change them without starting another worker. They are weaker than what an app sets
    itself. A file that is missing holds none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._read: tuple[tuple[int, int] | None, dict[str, Any]] = (None, {})

    def _values(self) -> dict[str, Any]:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return {}
        version = (stat.st_ino, stat.st_mtime_ns)
        if version != self._read[0]:
            self._read = (version, json.loads(self._path.read_text()))
        return self._read[1]

    def __getitem__(self, name: str) -> Any:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def replace(self, values: dict[str, Any]) -> None:
        """Write all settings at once."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(values))
        new.replace(self._path)


def make_app(config: dict[str, Any], patched: bool) -> Celery:
    """Return an app made from `config`, the JSON-safe dictionary of `harness.Stack.config`.

    `config` has the keys ``name`` (of the app and its queue), ``settings`` (Celery's), ``live``
    (the file of `LiveSettings`, if any) and ``tasks`` (module with a function ``register(app)``).
    chordguard is imported only if `patched`.
    """
    if "django" in config:
        project.use(config["django"])
    app = Celery(config["name"])
    app.conf.update(config["settings"])
    if "live" in config:
        app.add_defaults(LiveSettings(config["live"]))
    for name in ("result_backend", "chord_ledger_url"):
        if str(app.conf.get(name)).startswith("redis") and VERSION[:2] < (5, 3):
            app.conf[name] = f"tests.old_redis:PrefixedRedisBackend+{app.conf[name]}"
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
