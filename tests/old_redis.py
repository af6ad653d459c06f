"""Celery 5.2.7 knows no prefix for the keys of results: here its backend has one."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend


class PrefixedRedisBackend(RedisBackend):
    """Puts `result_backend_transport_options["global_keyprefix"]` before each key, as from 5.3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prefix = self.app.conf.result_backend_transport_options["global_keyprefix"].encode()
        for name in ("task_keyprefix", "group_keyprefix", "chord_keyprefix"):
            setattr(self, name, prefix + getattr(self, name))
