from __future__ import annotations

import contextlib

import pytest
from celery import chord
from kombu import Exchange, Queue

from tests.app_factory import QUEUE_EXPIRES, make_app
from tests.harness import Cluster
from tests.tasks import named

#: Routes a message to the queue of the worker.
HEADERS = {"to": "chords"}


@contextlib.contextmanager
def producer_by_headers(clusters, fix, *, patched=True, is_off=False):
    """Run a cluster whose producer sends to an exchange that looks at headers."""
    settings = {"chord_ledger": False, **({fix.setting: False} if is_off else {})}
    with clusters.alone("sqlite", "rabbitmq", patched=patched, settings=settings) as cluster:
        app = make_app(cluster.config, patched)
        name = cluster.stack.name
        app.conf.task_queues = [
            Queue(
                name,
                Exchange(f"{name}-headers", type="headers", auto_delete=True),
                binding_arguments={**HEADERS, "x-match": "all"},
                expires=QUEUE_EXPIRES,
            )
        ]
        app.set_current()
        yield Cluster(cluster.stack, app, cluster.worker, cluster.config)
        app.close()


def canvas(app):
    t = named(app)
    # The first poll finds it running: the next one has to be routed, too.
    header = [t.echo.s(1).set(headers=HEADERS), t.slow.s(2, 2.0).set(headers=HEADERS)]
    return chord(header, t.collect.s().set(headers=HEADERS))


@pytest.mark.parametrize("which", ["Celery alone", "switched off"])
def test_poller_is_dropped(clusters, fix, which):
    if not fix.is_needed():
        pytest.skip("this Celery does not have the defect")
    is_patched = which == "switched off"
    with producer_by_headers(clusters, fix, patched=is_patched, is_off=is_patched) as cluster:
        assert cluster.outcome(canvas(cluster.app), quiet=2.0).hung
        assert "celery.chord_unlock" not in cluster.worker.log_text().partition("received")[2]


def test_poller_is_routed_as_the_body(clusters, fix):
    with producer_by_headers(clusters, fix) as cluster:
        assert [1, 2] == cluster.run(canvas(cluster.app))
