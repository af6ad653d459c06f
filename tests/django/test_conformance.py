"""The catalogue of the conformance tests on django-db, where Celery alone is not on record."""

from __future__ import annotations

import pytest

from tests.conformance import catalogue
from tests.conformance.cells import run_all, run_strict
from tests.conformance.test_catalogue import BOUNDED, READABLE, TOLERANT, UNCOUNTED, not_right
from tests.django.project import BACKENDS

pytestmark = [
    pytest.mark.parametrize(
        "backend_kind",
        [
            pytest.param(kind, marks=() if kind == "django-postgresql" else pytest.mark.nightly)
            for kind in BACKENDS
        ],
    ),
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


def test_tolerant_chords(clusters, backend_kind):
    cluster = clusters(backend_kind, settings=TOLERANT)

    judged = run_all(cluster, catalogue.TOLERANT, BACKENDS[backend_kind], quiet=None)

    assert {} == not_right(judged)


@pytest.mark.nightly
def test_failing_chords(clusters, backend_kind, tmp_path):
    cluster = clusters(backend_kind, settings=catalogue.ERRBACKS_ONCE)
    scenarios = (*catalogue.STRICT, *catalogue.TOLERANT)

    judged = run_strict(cluster, scenarios, BACKENDS[backend_kind], None, tmp_path)

    assert {} == not_right(judged)


@pytest.mark.nightly
def test_chords_without_ledger(clusters, backend_kind):
    cluster = clusters(backend_kind, settings={**TOLERANT, **UNCOUNTED})

    judged = run_all(cluster, READABLE, BACKENDS[backend_kind], quiet=None)

    assert {} == not_right(judged)


@pytest.mark.nightly
def test_bounded_chords(clusters, backend_kind):
    cluster = clusters(backend_kind, settings=BOUNDED)

    judged = run_all(cluster, catalogue.BOUNDED, BACKENDS[backend_kind], quiet=None)

    assert {} == not_right(judged)
