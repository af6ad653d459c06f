from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.harness import wait_until

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis", "sqlite"]),
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


@pytest.fixture(params=["last", "followed"])
def chain_with_group(request):
    """Return a function that makes a chain which fails before a group."""

    def make(t):
        rest = [] if request.param == "last" else [t.collect.s()]
        return chain(t.fail.s(), group(t.echo.s(), t.echo.s()), *rest)

    return make


def start(cluster, member, errback):
    t = cluster.tasks
    header = [member(t), t.echo.s(2)]
    cluster.app.conf.task_allow_error_cb_on_chord_header = True
    try:
        return chord(header, t.collect.s()).on_error(errback).apply_async()
    finally:
        cluster.app.conf.task_allow_error_cb_on_chord_header = False


def test_chord_cannot_be_started(without_fix, chain_with_group):
    with pytest.raises(AttributeError, match="clone"):
        start(without_fix, chain_with_group, without_fix.tasks.errback_new.s())


def test_chord_calls_its_errback(with_fix, chain_with_group, record):
    errback = with_fix.tasks.errback_new.s(record=record.path)

    result = start(with_fix, chain_with_group, errback)

    assert "FAILURE" == with_fix.outcome(result).state
    wait_until(lambda: record.count("errback_new"), what="errback")
