from __future__ import annotations

import pytest
from celery import chord

from tests.django.backends import on_postgresql

pytestmark = on_postgresql


@pytest.fixture
def start(cluster, record):
    """Return a function that starts a chord whose members note that they run."""
    from chordguard.django import apply_on_commit

    def start(**options):
        t = cluster.tasks
        header = [t.echo.s(i, record=record.path) for i in range(2)]
        return apply_on_commit(chord(header, t.collect.s()), **options)

    return start


def test_chord_starts_when_the_transaction_is_committed(cluster, record, start):
    from django.db import transaction

    with transaction.atomic():
        result = start()
        other = cluster.tasks.echo.s(3).apply_async()
        assert "SUCCESS" == cluster.outcome(other).state
        assert 0 == record.count("echo")

    assert [0, 1] == cluster.outcome(result).value


def test_chord_of_a_transaction_that_is_rolled_back_is_not_started(cluster, record, start):
    from django.db import transaction

    with transaction.atomic():
        start()
        transaction.set_rollback(True)

    assert "SUCCESS" == cluster.outcome(cluster.tasks.echo.s(3)).state
    assert 0 == record.count("echo")


def test_without_a_transaction_it_starts_at_once(cluster, start):
    assert [0, 1] == cluster.outcome(start(task_id="at-once")).value
