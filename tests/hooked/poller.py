"""An application that polls chords itself: its task takes the place of Celery's."""

from __future__ import annotations

from celery import Task, current_app
from celery.canvas import maybe_signature
from celery.result import allow_join_result, result_from_tuple


class UnlockChord(Task):
    name = "celery.chord_unlock"
    max_retries = None

    def run(self, group_id, callback, interval=None, max_retries=None, result=None, **options):
        results = [result_from_tuple(member, app=self.app) for member in result]
        if not all(member.ready() for member in results):
            raise self.retry(countdown=0.1)
        with allow_join_result():
            values = [member.get() for member in results]
        maybe_signature(callback, app=self.app).delay(["polled by the app", *values])


current_app.register_task(UnlockChord())
