"""An app without a result backend, whose tests see how its chords end all the same."""

from __future__ import annotations

from typing import Any

import redis
from celery import states
from celery.backends.base import DisabledBackend

#: Seconds that what was noted lives.
EXPIRES = 600


class JournalBackend(DisabledBackend):
    """No result backend, but that what it is given is noted in Redis for the test to read.

    To Celery and chordguard it is one that refuses chords and keeps nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client = redis.Redis.from_url(self.url)

    def _key(self, task_id: str) -> str:
        return f"{self.app.main}:journal-{task_id}"

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        if self.get_task_meta(task_id)["status"] != states.SUCCESS:
            meta = {"status": state, "result": self.encode_result(result, state)}
            self._client.set(self._key(task_id), self.encode(meta), ex=EXPIRES)
        return result

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        payload = self._client.get(self._key(task_id))
        if payload is None:
            return {"status": states.PENDING, "result": None}
        return self.decode_result(payload)
