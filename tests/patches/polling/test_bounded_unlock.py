from __future__ import annotations

import pytest
from celery import chord
from celery.exceptions import ChordError

from chordguard import strict, tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from tests.harness import wait_until

#: Where parts are counted the poller is a safety net, which this fix is not asked about.
POLLED = {"chord_ledger": False}

pytestmark = [
    pytest.mark.parametrize(
        "backend_kind", ["sqlite", pytest.param("filesystem", marks=pytest.mark.nightly)]
    ),
    pytest.mark.cluster(settings=POLLED),
]

bounded = pytest.mark.cluster(
    settings={
        **POLLED,
        "chord_unlock_max_retries": 2,
        "chord_unlock_retry_delay": 0.1,
        "chord_unlock_retry_backoff": 2.0,
    }
)
#: The poller of Celery joins a header that is ready, and fails over the text of an error.
joined_by_celery = pytest.mark.cluster(settings={**POLLED, "chord_fix_tolerant_unlock": False})


def never_ready(t, record=None):
    """Return a chord of which one member never gets a result."""
    body = t.collect.s().on_error(t.errback_new.s(record=record and record.path))
    return chord([t.echo.s(1), t.echo.s(2).set(queue="nowhere"), t.echo.s(3)], body)


@bounded
def test_chord_is_polled_for_ever(without_fix):
    assert without_fix.outcome(never_ready(without_fix.tasks), quiet=1.5).hung


@bounded
# Its worker says when it starts that this is not much patience.
@pytest.mark.cluster(shared_by="bounded")
def test_chord_fails_at_its_bound_and_names_the_missing_member(with_fix, record):
    result = never_ready(with_fix.tasks, record).apply_async()

    outcome = with_fix.outcome(result)

    assert "FAILURE" == outcome.state, outcome
    assert isinstance(outcome.value, ChordError)
    assert "after 3 polls (the bound is 2 retries)" in str(outcome.value)
    assert f"1 of 3 header tasks: {result.parent[1].id}" in str(outcome.value)
    assert 1 == record.count("errback_new")
    # The delay grows from poll to poll, and so little patience is warned of.
    log = with_fix.worker.log_text()
    assert log.index("Retry in 0.1s") < log.index("Retry in 0.2s")
    assert "chord_unlock_max_retries" in with_fix.worker.log.read_text()


@bounded
def test_tolerant_chord_runs_its_body_at_its_bound(with_fix, record):
    first, lost, third = with_fix.run(tolerant(never_ready(with_fix.tasks, record)))

    assert (1, 3) == (first, third)
    assert lost.startswith("ChordMemberLost: ")
    assert 0 == record.count("errback_new")


def test_chord_is_lost_when_the_bound_of_its_own_is_hit(without_fix):
    if celery_version() >= celery_5_7:
        pytest.skip("this Celery does not have the defect")
    canvas = never_ready(without_fix.tasks)

    assert without_fix.outcome(canvas, max_retries=1, interval=0.1, quiet=1.5).hung


def test_chord_fails_at_a_bound_of_its_own(with_fix, record):
    canvas = never_ready(with_fix.tasks, record)

    outcome = with_fix.outcome(canvas, max_retries=1, interval=0.1)

    assert "FAILURE" == outcome.state, outcome
    assert "after 2 polls (the bound is 1 retries)" in str(outcome.value)
    assert 1 == record.count("errback_new")


@pytest.mark.cluster(
    settings={**POLLED, "task_annotations": {"celery.chord_unlock": {"max_retries": 1}}}
)
def test_chord_fails_at_the_bound_of_the_annotated_task(with_fix, record):
    outcome = with_fix.outcome(never_ready(with_fix.tasks, record))

    assert "FAILURE" == outcome.state, outcome
    assert 1 == record.count("errback_new")


def test_chord_fails_after_its_timeout_without_progress(with_fix, record):
    outcome = with_fix.outcome(strict(never_ready(with_fix.tasks, record), timeout=0.5))

    assert "FAILURE" == outcome.state, outcome
    assert "without progress (chord_timeout = 0.5)" in str(outcome.value)
    assert 1 == record.count("errback_new")


def test_progress_puts_the_timeout_off(with_fix):
    t = with_fix.tasks
    # One member after another, each in less than the timeout, all in more than it.
    header = [t.slow.s(i, 0.5) for i in range(8)]

    assert list(range(8)) == with_fix.run(strict(chord(header, t.collect.s()), timeout=1.5))


def wordless(t, record=None):
    """Return a strict chord that fails with an error whose text cannot be had."""
    body = t.collect.s().on_error(t.errback_old.s(record=record and record.path))
    return chord([t.echo.s(1), t.fail_with.s("raising_str")], body)


@joined_by_celery
def test_chord_whose_error_has_no_text_hangs(without_fix):
    assert without_fix.outcome(wordless(without_fix.tasks), quiet=2).hung


@joined_by_celery
def test_chord_whose_error_has_no_text_fails(with_fix, record):
    outcome = with_fix.outcome(wordless(with_fix.tasks, record))

    assert "FAILURE" == outcome.state, outcome
    wait_until(lambda: record.count("errback_old"), what="errback")
    assert 1 == record.count("errback_old")
