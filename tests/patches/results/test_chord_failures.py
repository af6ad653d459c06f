from __future__ import annotations

import re
from pathlib import Path

import pytest
from celery import chain, chord, group

from chordguard import strict, tolerant
from chordguard.engine.versions import celery_5_3, celery_5_6, celery_5_7, celery_version
from tests.harness import is_ready, wait_until


def failing(t):
    return [t.echo.s(1), t.fail.s()]


def chord_in_the_header(t):
    return chord([chord(failing(t), t.collect.s()), t.echo.s(2)], t.collect.s())


def body_is_a_chord(t):
    return chord(failing(t), chord([t.collect.s(), t.collect.s()], t.collect.s()))


def body_is_a_chain(t):
    return chord(failing(t), chain(t.collect.s(), t.collect.s()))


def body_is_a_group(t):
    return chord(failing(t), group(t.collect.s(), t.collect.s()))


def chain_of_chords(t):
    return chain(
        chord(failing(t), t.collect.s()), group(t.collect.s(), t.collect.s()), t.collect.s()
    )


def chord_of_chords_in_place_of_a_member(t):
    replacement = {
        "chord": [{"task": "boom", "does": "fails"}],
        "body": {
            "chord": [{"task": "member", "does": "returns"}],
            "body": {"task": "body", "does": "returns"},
        },
    }
    return chord([t.replaced_step.s(node=replacement), t.echo.s(2)], t.collect.s())


#: A canvas, the backends on which it hangs, and the first Celery on which it does not.
CANVASES = [
    (chord_in_the_header, ("redis",), None),
    (body_is_a_chord, ("redis", "sqlite"), None),
    (body_is_a_chain, ("redis", "sqlite"), celery_5_6),
    (body_is_a_group, ("redis", "sqlite"), celery_5_6),
    (chain_of_chords, ("redis", "sqlite"), celery_5_7),
    (chord_of_chords_in_place_of_a_member, ("redis", "sqlite"), None),
]

#: On SQL a chord that is counted, or joined by `tolerant_unlock`, ends without this fix.
joined_by_celery = pytest.mark.cluster(
    settings={"chord_ledger": False, "chord_fix_tolerant_unlock": False}
)
every_kind = pytest.mark.parametrize(
    "backend_kind",
    ["redis", "sqlite", pytest.param("sqlite", marks=joined_by_celery, id="sqlite-joined")],
)
polled = pytest.mark.cluster(settings={"chord_ledger": False})


@joined_by_celery
@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_what_waits_for_a_failed_chord_hangs(without_fix, backend_kind):
    results = [
        canvas(without_fix.tasks).apply_async()
        for canvas, backends, until in CANVASES
        if backend_kind in backends and (until is None or celery_version() < until)
    ]

    assert without_fix.outcome(results[0], quiet=0.7).hung
    assert not any(is_ready(result) for result in results)


@every_kind
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
@pytest.mark.parametrize("canvas", [canvas for canvas, _, _ in CANVASES])
def test_what_waits_for_a_failed_chord_fails_too(with_fix, canvas, record):
    t = with_fix.tasks
    errback = t.errback_new.s(record=record.path)

    outcome = with_fix.outcome(canvas(t).on_error(errback))

    assert "FAILURE" == outcome.state, outcome
    assert "boom" in str(outcome.value)
    wait_until(lambda: record.count("errback_new"), what="errback")


@every_kind
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_errback_of_a_chord_and_of_the_one_around_it_runs_once(with_fix, record):
    """Celery links an errback of the outer chord to the chords in its header, too (5.3 on)."""
    t = with_fix.tasks
    errback = t.errback_new.s(record=record.path)
    inner = chord(failing(t), t.collect.s().on_error(errback))
    outer = chord([inner, t.echo.s(2)], t.collect.s().on_error(errback))

    outcome = with_fix.outcome(outer)

    assert "FAILURE" == outcome.state, outcome
    wait_until(lambda: record.count("errback_new"), what="errback")
    # Whatever would call it a second time comes before this chord.
    with_fix.run(chord([t.echo.s(1)], t.collect.s()))
    assert 1 == record.count("errback_new")


@pytest.mark.parametrize(
    "backend_kind", ["redis", "sqlite", pytest.param("sqlite", marks=polled, id="sqlite-polled")]
)
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_errback_of_a_chord_in_a_tolerant_chord_runs_once(with_fix, record):
    """The chord around it does not fail, so nobody else calls it."""
    t = with_fix.tasks
    inner = strict(chord(failing(t), t.collect.s()))
    inner.body.on_error(t.errback_new.s(record=record.path))

    results = with_fix.run(tolerant(chord([inner, t.echo.s(2)], t.collect.s())))

    assert results[0].startswith("ChordError: "), results
    assert 2 == results[1]
    wait_until(lambda: record.count("errback_new"), what="errback")
    assert 1 == record.count("errback_new")


#: The canvas, and how often each errback is called: once per result that fails and carries it.
ERRBACKS = {
    "tasks of a group have one each": (
        lambda t, eb: chord(
            failing(t),
            group(t.collect.s().on_error(eb("own")), t.collect.s().on_error(eb("own"))),
        ),
        {"own": 2},
    ),
    "chord has one, its body is a group of three": (
        lambda t, eb: chord(failing(t), group([t.collect.s()] * 3)).on_error(eb("chord")),
        {"chord": 3},
    ),
    "both": (
        lambda t, eb: chord(
            failing(t), group(t.collect.s().on_error(eb("own")), t.collect.s())
        ).on_error(eb("chord")),
        {"own": 1, "chord": 2},
    ),
    "chord in a group": (
        lambda t, eb: chord(
            failing(t), group(chord([t.collect.s()], t.collect.s()), t.collect.s())
        ).on_error(eb("chord")),
        {"chord": 2},
    ),
    "same errback twice on one task": (
        lambda t, eb: chord(failing(t), t.collect.s().on_error(eb("own")).on_error(eb("own"))),
        {"own": 1},
    ),
    "chord in the header": (
        lambda t, eb: chord_in_the_header(t).on_error(eb("chord")),
        {"chord": 1},
    ),
    "header has a chord with a group for its body": (
        lambda t, eb: chord(
            [chord(failing(t), group(t.collect.s(), t.collect.s()).on_error(eb("inner")))],
            t.collect.s(),
        ),
        {"inner": 2},
    ),
}


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.parametrize("name", ERRBACKS)
def test_errback_runs_once_for_each_result_that_carries_it(with_fix, record, name):
    t = with_fix.tasks
    make, expected = ERRBACKS[name]
    paths = {key: f"{record.path}-{key}" for key in expected}
    canvas = make(t, lambda key: t.errback_new.s(record=paths[key]))

    outcome = with_fix.outcome(canvas)

    assert "FAILURE" == outcome.state, outcome
    calls = {key: Path(path).read_text().splitlines() for key, path in paths.items()}
    wait_until(with_fix.is_idle, what="idle worker")
    assert expected == {key: len(lines) for key, lines in calls.items()}
    # Each call is for a result of its own.
    assert all(len(lines) == len(set(lines)) for lines in calls.values())


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.skipif(celery_version() < celery_5_3, reason="the setting came with 5.3")
def test_errbacks_of_header_tasks_are_called_as_celery_documents(with_fix, record):
    """With ``task_allow_error_cb_on_chord_header``, and default settings otherwise."""
    t = with_fix.tasks
    with_fix.app.conf.task_allow_error_cb_on_chord_header = True
    try:
        canvas = chord([t.fail.s(), t.fail.s(), t.echo.s(1)], t.collect.s())
        result = canvas.on_error(t.errback_new.s(record=record.path)).apply_async()
    finally:
        with_fix.app.conf.task_allow_error_cb_on_chord_header = False

    assert "FAILURE" == with_fix.outcome(result).state
    wait_until(with_fix.is_idle, what="idle worker")
    assert 3 == record.count("errback_new")


#: How a chord fails, the settings that takes, and what Celery's log line shows on SQL.
ROADS = {
    "a member failed": ({}, lambda t: chord(failing(t), t.collect.s()), "ValueError"),
    "too many failed": (
        {},
        lambda t: tolerant(chord(failing(t), t.collect.s()), max_errors=0),
        "ChordError",
    ),
    "no ledger": (
        {"chord_ledger": False},
        lambda t: chord(failing(t), t.collect.s()),
        "ValueError",
    ),
}


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.parametrize("road", ROADS)
def test_failed_chord_is_logged_once_as_by_celery(clusters, backend_kind, road):
    settings, canvas, error = ROADS[road]
    error = "ChordError" if backend_kind == "redis" else error
    cluster = clusters(backend_kind, settings=settings)
    result = canvas(cluster.tasks).apply_async()

    assert "FAILURE" == cluster.outcome(result).state

    def lines():
        start = f"ERROR/ForkPoolWorker-[0-9]+[]] Chord '{result.parent.id}' raised: {error}"
        return re.findall(start, cluster.worker.log_text())

    wait_until(lines, what="a line")
    wait_until(cluster.is_idle, what="idle worker")
    assert 1 == len(lines())
    assert "Traceback" in cluster.worker.log_text().partition(f"'{result.parent.id}' raised")[2]


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_tolerated_failures_are_logged_with_their_count(clusters, backend_kind):
    cluster = clusters(backend_kind)
    result = tolerant(chord(failing(cluster.tasks), cluster.tasks.collect.s())).apply_async()

    cluster.run(result)

    said = f"Chord {result.parent.id}: tolerated 1 failed header tasks of 2"
    wait_until(lambda: said in cluster.worker.log_text(), what="a line")
    assert f"Chord '{result.parent.id}' raised" not in cluster.worker.log_text()
