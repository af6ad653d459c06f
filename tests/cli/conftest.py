"""Clusters whose chords nobody else looks after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Cluster
from tests.stuck import ALONE, ledger_of

#: Names and workers of members are stored, too.
SETTINGS = {**ALONE, "result_extended": True}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing has to be quiet before it is thought to be wrong."""
    monkeypatch.setattr("chordguard.diagnosis.QUIET_SECONDS", 0.0)


@pytest.fixture(params=["redis"])
def backend_kind(request):
    """The result backend, where `tests.cli.calls.BOTH` does not say otherwise."""
    return request.param


@pytest.fixture
def cluster(clusters, backend_kind, gate) -> Iterator[Cluster]:
    """A cluster without a live chord, as each test leaves it."""
    cluster = clusters(backend_kind, settings=SETTINGS, concurrency=4)
    yield cluster
    gate.open()
    ledger = ledger_of(cluster)
    for group_id in ledger.group_ids():
        ledger.close(group_id)
