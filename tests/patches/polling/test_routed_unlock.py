from __future__ import annotations

import pytest

from tests.chords.troubled import producer_by_headers, routed_by_headers


@pytest.mark.parametrize("which", ["Celery alone", "switched off"])
def test_poller_is_dropped(clusters, fix, which):
    if not fix.is_needed():
        pytest.skip("this Celery does not have the defect")
    is_patched = which == "switched off"
    with producer_by_headers(clusters, fix, patched=is_patched, is_off=is_patched) as cluster:
        assert cluster.outcome(routed_by_headers(cluster.app), quiet=2.0).hung
        assert "celery.chord_unlock" not in cluster.worker.log_text().partition("received")[2]


def test_poller_is_routed_as_the_body(clusters, fix):
    with producer_by_headers(clusters, fix) as cluster:
        assert [1, 2] == cluster.run(routed_by_headers(cluster.app))
