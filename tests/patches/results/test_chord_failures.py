from __future__ import annotations

import pytest
from celery import chain, chord, group

from chordguard._patch import celery_5_6, celery_5_7, celery_version
from tests.harness import wait_until


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


#: A canvas, the backends on which it hangs, and the first Celery on which it does not.
CANVASES = [
    pytest.param(chord_in_the_header, ("redis",), None, id="chord in the header"),
    pytest.param(body_is_a_chord, ("redis", "sqlite"), None, id="body is a chord"),
    pytest.param(body_is_a_chain, ("redis", "sqlite"), celery_5_6, id="body is a chain"),
    pytest.param(body_is_a_group, ("redis", "sqlite"), celery_5_6, id="body is a group"),
    pytest.param(chain_of_chords, ("redis", "sqlite"), celery_5_7, id="chain of chords"),
]

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis", "sqlite"]),
    pytest.mark.parametrize(("canvas", "backends", "until"), CANVASES),
    pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header"),
]


def test_what_waits_for_a_failed_chord_hangs(without_fix, backend_kind, canvas, backends, until):
    if backend_kind not in backends or (until and celery_version() >= until):
        pytest.skip("does not have the defect")

    assert without_fix.outcome(canvas(without_fix.tasks), quiet=0.7).hung


def test_what_waits_for_a_failed_chord_fails_too(with_fix, canvas, backends, until, record):
    t = with_fix.tasks
    errback = t.errback_new.s(record=record.path)

    outcome = with_fix.outcome(canvas(t).on_error(errback))

    assert "FAILURE" == outcome.state, outcome
    assert "boom" in str(outcome.value)
    wait_until(lambda: record.count("errback_new"), what="errback")
