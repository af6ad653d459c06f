from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard import strict, tolerant
from chordguard.engine.versions import celery_5_3, celery_version
from tests.harness import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")

#: Here Celery alone publishes the bodies that run.
polled = pytest.mark.cluster(settings={"chord_ledger": False})


def failing(t):
    return [t.echo.s(1), t.fail.s(), t.fail.s("too")]


def failing_chain(t):
    return chain(t.echo.s(0), t.fail_after.s(), t.echo.s())


def failing_body(t):
    return strict(chord([t.echo.s(1)], t.fail_after.s()))


def failing_chord(t, body=None):
    return strict(chord(failing(t), body or t.collect.s()))


#: How many results of a canvas carry its errback, where that is not one.
RESULTS = {"body is a group": 2, "bodies are groups": 2}

#: Each of them is one chord that fails and calls its errback once for each of these results.
CANVASES = {
    "group in the header": lambda t: chord([group(failing(t)), t.echo.s(2)], t.collect.s()),
    "chain in the header": lambda t: chord([failing_chain(t), t.fail.s()], t.collect.s()),
    "chord in the header": lambda t: chord([failing_chord(t), t.echo.s(2)], t.collect.s()),
    "chords in the header": lambda t: chord(
        [chord([failing_chord(t), t.fail.s()], t.collect.s()), failing_chord(t)], t.collect.s()
    ),
    "chord in a group": lambda t: chord([group(failing_chord(t)), t.echo.s(2)], t.collect.s()),
    "chord step of a chain": lambda t: chord(
        [chain(t.echo.s(0), group(t.fail_after.s(), t.fail_after.s()), t.collect.s())],
        t.collect.s(),
    ),
    "body is a chain": lambda t: failing_chord(t, chain(t.collect.s(), t.collect.s())),
    "body is a group": lambda t: failing_chord(t, group(t.collect.s(), t.collect.s())),
    "body is a chord": lambda t: failing_chord(t, chord([t.collect.s()] * 2, t.collect.s())),
    "bodies are groups": lambda t: chord(
        [failing_chord(t, group(t.collect.s(), t.collect.s()))],
        group(t.collect.s(), t.collect.s()),
    ),
    "body fails": failing_body,
    "chain of chords": lambda t: chain(
        failing_chord(t), group(t.collect.s(), t.collect.s()), t.collect.s()
    ),
    "too many failures": lambda t: tolerant(failing_chord(t), max_errors=1),
}

#: From 5.3 on an errback of the outer chord is linked to those in its header, too.
LINKED = {
    "chord in a tolerant chord": lambda t: tolerant(chord([failing_chord(t)] * 1, t.collect.s())),
    "body fails in a tolerant chord": lambda t: tolerant(chord([failing_body(t)], t.collect.s())),
}

#: The body of the chord in the header is published by Celery when nothing is counted.
COUNTED = {
    "body of a chord in the header fails": lambda t: chord([failing_body(t)], t.collect.s()),
    "hard time limit": lambda t: chord([t.exceed_hard_limit.s(), t.echo.s(2)], t.collect.s()),
}


@pytest.fixture
def publish(tmp_path):
    """Return a function that publishes a canvas with two errbacks, and their records."""

    def publish(cluster, name, canvas, allow=True):
        records = [tmp_path / f"{name} {allow} {kind}" for kind in ("old", "new")]
        t = cluster.tasks
        cluster.app.conf.task_allow_error_cb_on_chord_header = allow
        try:
            canvas = canvas(t)
            canvas.on_error(t.errback_old.s(record=str(records[0])))
            canvas.on_error(t.errback_new.s(record=str(records[1])))
            return canvas.apply_async(), records
        finally:
            cluster.app.conf.task_allow_error_cb_on_chord_header = False

    return publish


def calls(record):
    return len(record.read_text().splitlines()) if record.exists() else 0


def settled_calls(cluster, records):
    """Return the number of calls when the worker has nothing to do any more."""
    wait_until(lambda: all(map(calls, records)), what="errbacks")
    # A call too many may come last.
    wait_until(cluster.is_idle, what="idle worker")
    return list(map(calls, records))


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_errback_is_called_for_each_failed_member(without_fix, publish):
    result, records = publish(without_fix, "flat", failing_chord)

    assert "FAILURE" == without_fix.outcome(result).state
    assert [3, 3] == settled_calls(without_fix, records)


@pytest.mark.parametrize(
    "backend_kind",
    [
        "redis",
        "sqlite",
        pytest.param("redis", marks=polled, id="redis-uncounted"),
        pytest.param("sqlite", marks=polled, id="sqlite-polled"),
    ],
)
def test_errback_is_called_once_for_a_failed_chord(with_fix, publish, options):
    canvases = CANVASES if "settings" in options else {**CANVASES, **COUNTED}
    if celery_version() >= celery_5_3:
        canvases = {**canvases, **LINKED}
    # The setting came with 5.3.
    published = {
        (name, allow): publish(with_fix, name, canvas, allow)
        for name, canvas in canvases.items()
        for allow in ((False, True) if celery_version() >= celery_5_3 else (False,))
    }
    for result, _ in published.values():
        assert not with_fix.outcome(result).hung

    found = {key: settled_calls(with_fix, records) for key, (_, records) in published.items()}

    expected = {key: RESULTS.get(key[0], 1) for key in published}
    assert {key: [times, times] for key, times in expected.items()} == found


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_errback_of_a_header_task_is_its_own(with_fix, record, tmp_path):
    """It is called for the task, and the chord's for the chord; neither for what is tolerated."""
    t = with_fix.tasks
    with_fix.app.conf.task_allow_error_cb_on_chord_header = True
    own, outer = (t.errback_new.s(record=str(tmp_path / name)) for name in ("own", "outer"))
    canvas = chord([t.fail.s().on_error(own), t.fail.s().on_error(own)], t.collect.s())
    canvas.on_error(outer)
    with_fix.app.conf.task_allow_error_cb_on_chord_header = False

    assert ["ValueError: boom"] * 2 == with_fix.run(tolerant(canvas))
    # A member's errback is called when its part has been counted.
    wait_until(lambda: calls(tmp_path / "own") == 2, what="errbacks of the members")
    assert [2, 0] == [calls(tmp_path / "own"), calls(tmp_path / "outer")]
    assert "FAILURE" == with_fix.outcome(canvas).state
    assert [4, 1] == settled_calls(with_fix, [tmp_path / "own", tmp_path / "outer"])
