from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.harness import wait_until

ACTS_IN_PRODUCER = True

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis", "sqlite"]),
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


def start(cluster, errback):
    t = cluster.tasks
    header = [chain(t.fail.s(), group(t.echo.s(), t.echo.s())), t.echo.s(2)]
    cluster.app.conf.task_allow_error_cb_on_chord_header = True
    try:
        return chord(header, t.collect.s()).on_error(errback).apply_async()
    finally:
        cluster.app.conf.task_allow_error_cb_on_chord_header = False


def test_chord_cannot_be_started(without_fix):
    with pytest.raises(AttributeError, match="clone"):
        start(without_fix, without_fix.tasks.errback_new.s())


def test_chord_calls_its_errback(with_fix, record):
    result = start(with_fix, with_fix.tasks.errback_new.s(record=record.path))

    assert "FAILURE" == with_fix.outcome(result).state
    wait_until(lambda: record.count("errback_new"), what="errback")
