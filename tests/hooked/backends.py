"""Result backends that applications make from Celery's."""

from __future__ import annotations

from celery import VERSION, states
from celery.backends.database import DatabaseBackend
from celery.canvas import maybe_signature

if VERSION[:2] < (5, 3):
    from tests.old_redis import PrefixedRedisBackend as RedisBackend
else:
    from celery.backends.redis import RedisBackend  # type: ignore[no-redef]


class Unpacking(RedisBackend):
    """Overrides the unpacking of results, and calls Celery's for those that are good."""

    def _unpack_chord_result(self, tup, decode, *args, **kwargs):
        _, _, state, _ = decode(tup)
        if state in states.PROPAGATE_STATES:
            return "by the subclass"
        return super()._unpack_chord_result(tup, decode, *args, **kwargs)


class Watching(RedisBackend):
    """Adds to the counting of parts."""

    def on_chord_part_return(self, request, state, result, **kwargs):
        self.client.incr(self.get_key_for_group(request.group, ".watched"))
        return super().on_chord_part_return(request, state, result, **kwargs)


class Counting(RedisBackend):
    """Counts parts itself: the body gets their number."""

    def on_chord_part_return(self, request, state, result, **kwargs):
        key = self.get_key_for_group(request.group, ".own")
        size = int(self.client.get(self.get_key_for_group(request.group, ".s")) or 0)
        if self.client.incr(key) == size:
            maybe_signature(request.chord, app=self.app).delay(["counted by the app", size])


class Failing(DatabaseBackend):
    """Fails chords in its own way."""

    def chord_error_from_stack(self, callback, exc=None):
        return super().chord_error_from_stack(callback, ValueError("by the subclass"))
