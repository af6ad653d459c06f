from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard import tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from tests.harness import is_ready

polled = pytest.mark.cluster(settings={"chord_ledger": False})

every_kind = pytest.mark.parametrize(
    "backend_kind",
    [
        "redis",
        "sqlite",
        pytest.param("redis", marks=polled, id="redis-uncounted"),
        pytest.param("sqlite", marks=polled, id="sqlite-polled"),
    ],
)


def ignored(t):
    return t.ignore.s()


def ignored_in_a_chain(t):
    return chain(t.echo.s(1), t.ignore.si(), t.echo.s())


def ignored_before_a_group(t):
    return chain(t.ignore.s(), group(t.echo.s(), t.echo.s()), t.collect.s())


def ignored_in_a_chord(t):
    return chord([t.ignore.s(), t.echo.s(1)], t.collect.s())


def rejected(t):
    return t.reject.s()


def rejected_in_a_chain(t):
    return chain(t.echo.s(1), t.reject.si(), t.echo.s())


#: A member that ends so, and the error that the body gets in its place.
MEMBERS = [
    (ignored, "Ignore"),
    (ignored_in_a_chain, "Ignore"),
    (ignored_before_a_group, "Ignore"),
    (ignored_in_a_chord, "ChordError"),
    (rejected, "Reject"),
    (rejected_in_a_chain, "Reject"),
]


def is_mended(member):
    """From 5.7 on Celery itself fails a task that was rejected."""
    return celery_version() >= celery_5_7 and member in (rejected, rejected_in_a_chain)


@polled
@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_chord_of_an_ignored_member_hangs(without_fix, backend_kind):
    t = without_fix.tasks
    results = [
        chord([member(t), t.echo.s(2)], t.collect.s()).apply_async()
        for member, _ in MEMBERS
        if not is_mended(member)
    ]

    assert without_fix.outcome(results[0], quiet=0.7).hung
    assert not any(is_ready(result) for result in results)


@every_kind
def test_ignored_member_counts_as_failed(with_fix):
    t = with_fix.tasks
    canvases = [tolerant(chord([member(t), t.echo.s(2)], t.collect.s())) for member, _ in MEMBERS]
    results = [canvas.apply_async() for canvas in canvases]
    strict = chord([t.ignore.s(), t.echo.s(2)], t.collect.s()).apply_async()

    values = [with_fix.run(result) for result in results]
    outcome = with_fix.outcome(strict)

    expected = [[error, 2] for _, error in MEMBERS]
    assert expected == [[failed.partition(":")[0], done] for failed, done in values]
    assert "FAILURE" == outcome.state, outcome
    assert "Ignore()" in str(outcome.value)


@every_kind
def test_ignored_member_counts_with_the_state_that_it_stored(with_fix):
    t = with_fix.tasks
    done = t.store_then_ignore.s("SUCCESS", 1)
    waits = t.store_then_ignore.s("PROGRESS", 2)
    header = [done, waits, chain(done, t.echo.s()), t.echo.s(4)]

    assert [1, "Ignore: ", "Ignore: ", 4] == with_fix.run(tolerant(chord(header, t.collect.s())))


@every_kind
def test_member_that_runs_again_under_its_id_counts_once_it_is_done(with_fix):
    t = with_fix.tasks
    header = [
        t.replace_with.s(1),
        t.replace_with_chord.s([2, 3]),
        t.send_again.s(4),
        chain(t.send_again.s(5), t.replace_with.s()),
        t.retry_then.s(6),
    ]

    assert [1, [2, 3], 4, 5, 6] == with_fix.run(chord(header, t.collect.s()))
