from __future__ import annotations

import pytest
from celery import chord

from tests.chords.troubled import late_retry
from tests.django.backends import on_all, on_postgresql, on_sqlite

#: While a member retries it keeps one process, and its second run takes another one.
pytestmark = pytest.mark.cluster(concurrency=3)


@on_sqlite
def test_retry_that_is_stored_late_makes_the_chord_wait(without_fix, gate):
    result = late_retry(without_fix, gate)

    assert without_fix.outcome(result, quiet=1.2).hung
    assert "RETRY" == result.parent[0].state


@on_all
def test_retry_that_is_stored_late_is_not_stored(with_fix, gate):
    result = late_retry(with_fix, gate)

    assert [1, 2] == with_fix.outcome(result).value
    assert "SUCCESS" == result.parent[0].state


@on_postgresql
def test_row_is_that_of_celery_alone(with_fix, clusters, backend_kind):
    settings = {"result_extended": True, "task_track_started": True}
    rows = {}
    for which in (True, False):
        cluster = clusters(backend_kind, patched=which, settings=settings)
        t = cluster.tasks
        result = chord([t.retry_then.s(1), t.fail.s(), t.add.s(1, y=2)], t.collect.s())
        ended = cluster.outcome(result)
        rows[which] = [row_of(member.id) for member in ended.result.parent]

    assert rows[True] == rows[False]


def row_of(task_id):
    from django_celery_results.models import TaskResult

    (row,) = TaskResult.objects.filter(task_id=task_id).values()
    varying = ("id", "task_id", "date_created", "date_done", "date_started", "worker", "traceback")
    dates = [row[name] for name in ("date_created", "date_started", "date_done")]
    return {name: value for name, value in row.items() if name not in varying}, sorted(
        dates
    ) == dates
