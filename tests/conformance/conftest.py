"""Print the conformance table of this Celery at the end of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance import table
from tests.conformance.cells import cells

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cells:
        import celery

        terminalreporter.section("conformance: stock > patched")
        for line in table.rendered({f"Celery {celery.__version__}": cells}):
            terminalreporter.write_line(line)
