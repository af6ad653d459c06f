"""The examples work as they are, and name what there is."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from celery import chord

from chordguard.metrics import COUNTED, GAUGES
from tests.chords import stuck
from tests.django import project
from tests.harness import ROOT

#: No other file's chords are on it.
pytestmark = pytest.mark.cluster(settings=stuck.ALONE, shared_by=__name__)

EXAMPLES = ROOT / "examples"


@pytest.fixture
def backend_kind():
    return "redis"


@pytest.fixture
def cluster(cluster, monkeypatch):
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("chordguard.monitoring.health.KEPT", 0.0)
    monkeypatch.setattr("chordguard.monitoring.health.KEPT_TIMES", 0)
    return cluster


@pytest.fixture
def example(cluster, monkeypatch):
    """Return a function that imports an example, in a project whose app is the cluster's."""
    proj: Any = ModuleType("proj")
    proj.celery = ModuleType("proj.celery")
    proj.celery.app = cluster.app
    monkeypatch.setitem(sys.modules, "proj", proj)
    monkeypatch.setitem(sys.modules, "proj.celery", proj.celery)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def check_endpoint(ask, cluster, gate):
    """Have a stuck chord; `ask` returns the code and the data of an answer."""
    assert (200, "healthy") == (ask()[0], ask()[1]["status"])
    result = stuck.part_lost(cluster, gate)
    try:
        code, data = ask()
    finally:
        stuck.ledger_of(cluster).close(result.parent.id)
        gate.open()
    assert (503, {"part-lost": 1}) == (code, data["stuck"])


def test_django_endpoint(example, cluster, gate):
    pytest.importorskip("django")
    pytest.importorskip("django_celery_results")
    from django.test import RequestFactory

    project.use_any()
    view = example("django_health").chords

    def ask():
        answer = view(RequestFactory().get("/health/chords"))
        return answer.status_code, json.loads(answer.content)

    check_endpoint(ask, cluster, gate)


def test_fastapi_endpoint(example, cluster, gate):
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    api = fastapi.FastAPI()
    api.include_router(example("fastapi_health").router)
    client = TestClient(api)

    def ask():
        answer = client.get("/health/chords")
        return answer.status_code, answer.json()

    check_endpoint(ask, cluster, gate)


def follow(cluster, gate, stream):
    """Have a chord end while it is followed; `stream` returns its events and the value."""
    t = cluster.tasks
    header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2)]
    result = chord(header, t.collect.s()).apply_async()
    # The first event says that the other member is awaited.
    threading.Timer(0.5, gate.open).start()
    text, value = stream(result.id)
    told = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert ("running", 2) == (told[0]["state"], told[0]["total"])
    assert ("succeeded", 2, 0) == tuple(told[-1][name] for name in ("state", "done", "failed"))
    assert {"value": [1, 2]} == value


def test_django_progress(example, cluster, gate):
    pytest.importorskip("django")
    from django.conf import settings
    from django.test import AsyncRequestFactory

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
    views = example("django_progress")

    async def stream(chord_id):
        answer = await views.events(AsyncRequestFactory().get("/"), chord_id)
        assert "text/event-stream" == answer["Content-Type"]
        text = "".join([part.decode() async for part in answer.streaming_content])
        value = await views.value(AsyncRequestFactory().get("/"), chord_id)
        return text, json.loads(value.content)

    follow(cluster, gate, lambda chord_id: asyncio.run(stream(chord_id)))


def test_fastapi_progress(example, cluster, gate):
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    api = fastapi.FastAPI()
    api.include_router(example("fastapi_progress").router)

    def stream(chord_id):
        with TestClient(api) as client:
            answer = client.get(f"/chords/{chord_id}/events")
            assert answer.headers["content-type"].startswith("text/event-stream")
            return answer.text, client.get(f"/chords/{chord_id}").json()

    follow(cluster, gate, stream)


def test_kubernetes_probe_runs_what_there_is(cluster, gate):
    pytest.importorskip("chordguard.cli.calling")
    from tests.cli.calls import call

    text = (EXAMPLES / "kubernetes.yaml").read_text()
    serve, probe = (json.loads(line) for line in re.findall(r"command: (\[.*\])", text))
    assert ["celery", "-A", "proj", "chords"] == serve[:4] == probe[:4]
    assert ["metrics", "--listen", "0.0.0.0:9808"] == serve[4:]

    assert 0 == call(cluster.app, *probe[4:]).code
    result = stuck.part_lost(cluster, gate)
    try:
        code = call(cluster.app, *probe[4:]).code
    finally:
        stuck.ledger_of(cluster).close(result.parent.id)
        gate.open()
    assert 1 == code


def test_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())

    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"celery_chord_\w+", " ".join(expressions)))
    assert {*GAUGES, *COUNTED} == {name.removesuffix("_bucket") for name in shown}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
