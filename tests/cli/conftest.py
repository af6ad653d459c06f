"""A cluster whose chords nobody else looks after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chords.stuck import ledger_of
from tests.harness import Cluster


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing has to be quiet before it is thought to be wrong."""
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)


@pytest.fixture(params=["redis"])
def backend_kind(request):
    """The result backend, where `tests.cli.calls.BOTH` does not say otherwise."""
    return request.param


@pytest.fixture
def cluster(cluster, gate) -> Iterator[Cluster]:
    """A cluster without a live chord, as each test leaves it."""
    yield cluster
    gate.open()
    ledger = ledger_of(cluster)
    for group_id in ledger.group_ids():
        ledger.close(group_id)
