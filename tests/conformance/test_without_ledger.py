"""The rows of the catalogue on result backends whose own store keeps no ledger: patched, all right.

Celery counts chords in memcached and (from 5.4 on) in DynamoDB, and polls them on the filesystem.
Which row concerns them is what it says of Redis, where Celery counts, or of SQLite, where it polls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance import catalogue
from tests.conformance.catalogue import REDIS, SQLITE
from tests.conformance.cells import run_all, run_strict
from tests.conformance.test_catalogue import ASKED, BOUNDED, READABLE, TOLERANT
from tests.harness import WITHOUT_LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.conformance.catalogue import Scenario

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.parametrize(
        "backend_kind",
        [
            pytest.param(kind, marks=pytest.mark.xdist_group(f"without-ledger-{kind}"))
            for kind in WITHOUT_LEDGER
        ],
    ),
]

#: The settings of the workers that canvases are run by, and the canvases.
#: Of a message that cannot be read only a ledger knows which chord waits for it (A16).
KINDS = {
    "tolerant": (TOLERANT, READABLE),
    "asked": (ASKED, catalogue.ASKED),
    "bounded": (BOUNDED, catalogue.BOUNDED),
}


@pytest.fixture
def stands_for(clusters: Callable[..., Any], backend_kind: str) -> str:
    """The backend of the catalogue whose rows concern this one."""
    from chordguard.upstream import backends

    app = clusters(backend_kind, settings=TOLERANT).app
    return SQLITE if backends.capabilities_of(app).polls else REDIS


@pytest.fixture
def check(
    record_property: Callable[[str, object], None], backend_kind: str
) -> Callable[[dict[str, Any], str], None]:
    """Return a function that tells each cell to the table, and that all are right."""

    def check(judged: dict[str, Any], suffix: str = "") -> None:
        for row, (cell, _) in judged.items():
            record_property("cell", (f"{row}{suffix}", backend_kind, "patched", cell))
        wrong = {row: outcome for row, (cell, outcome) in judged.items() if cell != "right"}
        assert {} == wrong

    return check


@pytest.mark.parametrize("which", KINDS)
def test_chords(clusters, backend_kind, stands_for, check, which):
    settings, scenarios = KINDS[which]
    cluster = clusters(backend_kind, settings=settings)

    check(run_all(cluster, scenarios, stands_for, quiet=None))


def strictly(
    clusters: Callable[..., Any],
    backend_kind: str,
    stands_for: str,
    scenarios: Sequence[Scenario],
    folder: Path,
) -> dict[str, Any]:
    settings = {**catalogue.ERRBACKS_ONCE, "chord_unlock_first_delay": 300}
    cluster = clusters(backend_kind, settings=settings)
    return run_strict(cluster, scenarios, stands_for, None, folder)


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_failing_chords(clusters, backend_kind, stands_for, check, tmp_path):
    check(strictly(clusters, backend_kind, stands_for, catalogue.STRICT, tmp_path))


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_strict_chords(clusters, backend_kind, stands_for, check, tmp_path):
    check(strictly(clusters, backend_kind, stands_for, READABLE, tmp_path), ", strict")
