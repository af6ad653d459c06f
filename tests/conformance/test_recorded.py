"""What stock does is on record for every supported Celery, and for the catalogue as it is."""

from __future__ import annotations

import re

import pytest

from tests.conformance import catalogue, recorded
from tests.harness import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSIONS = re.findall(r"\"celery==([\d.]+)\"", PROJECT)
ROWS = [
    (str(scenario), backend)
    for scenarios in vars(catalogue).values()
    if isinstance(scenarios, tuple)
    for scenario in scenarios
    if isinstance(scenario, catalogue.Scenario)
    for backend in scenario.backends
]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_row_of_the_catalogue_is_recorded(version):
    assert [] == recorded.missing(version, ROWS), "run `nox -s conformance -- --record`"
