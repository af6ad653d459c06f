"""Gather the cells of the conformance table and print it at the end of the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest

from tests.conformance import table

if TYPE_CHECKING:
    from collections.abc import Callable

#: (row, backend, "stock" or "patched") -> outcome.
cells: dict[tuple[str, str, str], str] = {}


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that notes a cell; it reaches the process that prints the table."""

    def note(row: str, backend: str, patched: bool, outcome: str) -> None:
        record_property("cell", (row, backend, "patched" if patched else "stock", outcome))

    return note


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "cell":
                row, backend, which, outcome = cast("tuple[str, ...]", value)
                cells[row, backend, which] = outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cells:
        import celery

        terminalreporter.section("conformance: stock > patched")
        for line in table.rendered({f"Celery {celery.__version__}": cells}):
            terminalreporter.write_line(line)
        if folder := os.environ.get("CHORDGUARD_CONFORMANCE_DIR"):
            table.save(folder, cells)
