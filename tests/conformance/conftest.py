"""Hold each cell of the table to what it has to be; print the table at the end of the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import celery
import pytest

from tests.conformance import recorded, table
from tests.conformance.catalogue import RIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

#: (row, backend, "stock" or "patched") -> outcome.
cells: dict[tuple[str, str, str], str] = {}


@pytest.fixture
def records(request: pytest.FixtureRequest) -> bool:
    """Whether this run writes down what stock does, instead of proving it."""
    return bool(request.config.getoption("--record"))


@pytest.fixture
def judge(records: bool, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that judges a cell: patched is right, stock is as recorded.

    It takes the row, the backend, whether it is the patched half, the outcome, and what to show
    where that is not as it has to be.
    """

    def judge(row: str, backend: str, patched: bool, outcome: str, shown: object = None) -> None:
        # It reaches the process that prints the table.
        record_property("cell", (row, backend, "patched" if patched else "stock", outcome))
        if patched:
            assert outcome == RIGHT, shown
        elif not records:
            assert outcome in recorded.outcomes(celery.__version__, row, backend), shown

    return judge


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "cell":
                row, backend, which, outcome = cast("tuple[str, ...]", value)
                cells[row, backend, which] = outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not cells:
        return
    terminalreporter.section("conformance: stock > patched")
    for line in table.rendered({f"Celery {celery.__version__}": cells}):
        terminalreporter.write_line(line)
    if folder := os.environ.get("CHORDGUARD_CONFORMANCE_DIR"):
        table.save(folder, cells)
    if terminalreporter.config.getoption("--record"):
        recorded.add(celery.__version__, cells)
