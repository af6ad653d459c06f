from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import chord
from celery.signals import before_task_publish

ACTS_IN_PRODUCER = True

pytestmark = pytest.mark.cluster(settings={"chord_ledger": False})

#: Seconds by which the header is held up.
DELAY = 2

on_both = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
WAYS = pytest.mark.parametrize("way", ["countdown", "eta", "set"])


def start(t, way, delay=DELAY):
    """Start a chord with a delay; return what each message has for an ETA, in seconds from now."""
    etas = {}

    def note(sender, headers, **_):
        eta = headers["eta"] and datetime.fromisoformat(headers["eta"]).timestamp() - time.time()
        etas.setdefault(sender, eta)

    canvas = chord([t.echo.s(1), t.echo.s(2)], t.collect.s())
    options = {
        "countdown": {"countdown": delay},
        "eta": {"eta": datetime.now(timezone.utc) + timedelta(seconds=delay)},
        "set": {},
    }[way]
    if way == "set":
        canvas = canvas.set(countdown=delay)
    before_task_publish.connect(note, weak=False)
    try:
        return canvas.apply_async(**options), etas
    finally:
        before_task_publish.disconnect(note)


@on_both
def test_countdown_does_not_delay_the_header(without_fix):
    _, etas = start(without_fix.tasks, "countdown")

    assert etas["tests.echo"] is None


@on_both
@WAYS
def test_header_is_delayed_and_nothing_else(with_fix, way):
    result, etas = start(with_fix.tasks, way)

    assert DELAY - 1 < etas.pop("tests.echo") <= DELAY
    assert [] == [eta for eta in etas.values() if eta > 1.1]
    outcome = with_fix.outcome(result)
    assert [1, 2] == outcome.value
    assert outcome.seconds < DELAY + 2
