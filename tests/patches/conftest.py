"""Celery with and without the one fix that a test file is about: `test_<name of the fix>.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chordguard import _install, _patch  # noqa: F401 - the first fills the registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Cluster


@pytest.fixture
def fix(request: pytest.FixtureRequest) -> _patch.Patch:
    """The fix that the test file is named after."""
    return _patch.registry[request.module.__name__.rpartition(".test_")[2]]


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What ``@pytest.mark.cluster(...)`` says."""
    found: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("cluster"))):
        found.update(mark.kwargs)
    return found


@pytest.fixture
def with_fix(
    clusters: Callable[..., Cluster],
    backend_kind: str,
    options: dict[str, Any],
    fix: _patch.Patch,
) -> Cluster:
    """A cluster with all patches; one that is opt-in acts where the test is about it."""
    if fix.is_opt_in:
        options = {**options, "settings": {**options.get("settings", {}), fix.setting: True}}
    return clusters(backend_kind, **options)


@pytest.fixture(params=["Celery alone", "switched off"])
def without_fix(
    request: pytest.FixtureRequest,
    clusters: Callable[..., Cluster],
    backend_kind: str,
    options: dict[str, Any],
    fix: _patch.Patch,
) -> Iterator[Cluster]:
    """A cluster in which the defect shows: Celery alone, then all patches but the fix."""
    if not fix.is_needed():
        pytest.skip("this Celery does not have the defect")
    if request.param == "Celery alone":
        yield clusters(backend_kind, patched=False, **options)
    elif getattr(request.module, "ACTS_IN_PRODUCER", False):
        # Settings are read when they are used: no worker of its own is needed.
        cluster = clusters(backend_kind, **options)
        cluster.app.conf[fix.setting] = False
        yield cluster
        cluster.app.conf[fix.setting] = True
    else:
        settings = {**options.get("settings", {}), fix.setting: False}
        yield clusters(backend_kind, **{**options, "settings": settings})
