"""The page about monitoring shows what is printed."""

from __future__ import annotations

import json
import logging
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from chordguard import health_check
from chordguard.metrics import ChordCollector
from chordguard.monitoring.periodic import CHECK
from tests.chords import stuck
from tests.harness import ROOT

TEXT = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def shape(text):
    """Return `text` without what differs from chord to chord."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    return re.sub(r"(age=|age_seconds |\"(age|oldest_age|checked)\": )[\d.e+]+", r"\1N", text)


@pytest.fixture
def chord(clusters, gate, monkeypatch):
    """A part of it is lost."""
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)
    cluster = clusters("redis", settings=stuck.ALONE, shared_by=__name__)
    result = stuck.part_lost(cluster, gate)
    yield cluster.app
    stuck.ledger_of(cluster).close(result.parent.id)
    gate.open()


def test_outputs_are_those_of_a_real_chord(chord, caplog):
    caplog.set_level(logging.INFO, "chordguard.check")
    registry = CollectorRegistry()
    registry.register(ChordCollector(chord))

    chord.tasks[CHECK].apply(kwargs={"asks_workers": False}).get()
    said = "\n".join(r.getMessage() for r in caplog.records if r.name == "chordguard.check")

    given = health_check(chord, max_age=6 * 3600)
    exposed = generate_latest(registry).decode()

    events, exposition = blocks("text")
    (answer,) = blocks("json")
    assert shape(json.dumps(json.loads(answer))) == shape(json.dumps(given))
    assert shape(events) == shape(f"{said}\n")
    assert shape(exposition) == shape(exposed)
