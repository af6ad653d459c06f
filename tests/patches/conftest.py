"""Celery with and without the one fix that a test file is about: `test_<name of the fix>.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chordguard.engine.patch import Patch
from chordguard.patches import registry
from tests.conftest import cluster_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Cluster


@pytest.fixture
def fix(request: pytest.FixtureRequest) -> Patch:
    """The fix that the test file is named after."""
    return registry[request.module.__name__.rpartition(".test_")[2]]


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What ``@pytest.mark.cluster(...)`` says."""
    return cluster_options(request.node)


@pytest.fixture
def with_fix(
    clusters: Callable[..., Cluster],
    backend_kind: str,
    options: dict[str, Any],
    fix: Patch,
) -> Cluster:
    """A cluster with all patches; one that is opt-in acts where the test is about it."""
    if fix.is_opt_in:
        options = {**options, "settings": {**options.get("settings", {}), fix.setting: True}}
    return clusters(backend_kind, **options)


@pytest.fixture(params=[pytest.param("Celery alone", marks=pytest.mark.stock), "switched off"])
def without_fix(
    request: pytest.FixtureRequest,
    clusters: Callable[..., Cluster],
    backend_kind: str,
    options: dict[str, Any],
    fix: Patch,
) -> Cluster:
    """A cluster in which the defect shows: Celery alone, then all patches but the fix."""
    if not fix.is_needed():
        pytest.skip("this Celery does not have the defect")
    if request.param == "Celery alone":
        return clusters(backend_kind, patched=False, **options)
    settings = {**options.get("settings", {}), fix.setting: False}
    return clusters(backend_kind, **{**options, "settings": settings})
