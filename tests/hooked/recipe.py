"""The recipe of blogs: failed members become texts. Replaced when a worker imports this."""

from __future__ import annotations

from celery import states
from celery.backends.redis import RedisBackend


def unpack_chord_result(self, tup, decode, *args, **kwargs):
    _, _, state, value = decode(tup)
    if state in states.PROPAGATE_STATES:
        return f"by the recipe: {self.exception_to_python(value)}"
    return value


RedisBackend._unpack_chord_result = unpack_chord_result
