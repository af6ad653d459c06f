from __future__ import annotations

import json
from datetime import timedelta

import pytest
from celery.utils import uuid

from tests.django.backends import on_all, on_sqlite

#: Seconds after which results expire here.
EXPIRES = 600


def counter(cluster, *ages):
    """Insert the counter of a chord; its members stored something so many seconds ago, or nothing.

    Return the counter's group.
    """
    from django.utils import timezone
    from django_celery_results.models import ChordCounter, TaskResult

    group_id, members = uuid(), [uuid() for _ in ages]
    header = [cluster.app.AsyncResult(id_).as_tuple() for id_ in members]
    ChordCounter.objects.create(group_id=group_id, sub_tasks=json.dumps(header), count=1)
    for task_id, age in zip(members, ages, strict=True):
        if age is not None:
            TaskResult.objects.create(task_id=task_id, status="SUCCESS")
            done = timezone.now() - timedelta(seconds=age)
            TaskResult.objects.filter(task_id=task_id).update(date_done=done)
    return group_id


def left(*group_ids):
    from django_celery_results.models import ChordCounter

    found = ChordCounter.objects.filter(group_id__in=group_ids).values_list("group_id", flat=True)
    return [id_ for id_ in group_ids if id_ in found]


@on_sqlite
def test_counters_stay_for_ever(without_fix):
    old = counter(without_fix, 10 * EXPIRES, None)

    without_fix.app.backend.cleanup()

    assert [old] == left(old)


@on_all
@pytest.mark.cluster(settings={"result_expires": EXPIRES})
def test_counters_without_progress_go(with_fix):
    without_results = counter(with_fix, None)
    old = counter(with_fix, 10 * EXPIRES, None)
    live = counter(with_fix, 10 * EXPIRES, 1)
    new = counter(with_fix, None)

    with_fix.app.backend.cleanup()

    assert [live, new] == left(without_results, old, live, new)
