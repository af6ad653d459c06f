"""The examples work as they are, and name what there is."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest

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
