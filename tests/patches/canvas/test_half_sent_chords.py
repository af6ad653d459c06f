from __future__ import annotations

import contextlib

import pytest
from celery import chain, chord, group
from kombu.exceptions import OperationalError

from chordguard.engine.versions import celery_5_7, celery_version
from chordguard.ledger.access import ledger_of
from tests.app_factory import make_app
from tests.chords.traces import traces
from tests.chords.troubled import UNSENDABLE, broken, send_in_vain
from tests.harness import wait_until
from tests.tasks import named

#: The poller comes soon, so that a test sees what becomes of it.
SOON = {"chord_unlock_first_delay": 1}

pytestmark = pytest.mark.cluster(settings=SOON)

on_both = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


@on_both
def test_chord_leaves_traces(without_fix):
    ids = send_in_vain(broken(without_fix.tasks, 2))

    wait_until(lambda: traces(without_fix, *ids), what="traces")


@on_both
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("has_ledger", [True, False], ids=["counted", "polled"])
def test_chord_leaves_no_trace(with_fix, position, has_ledger):
    with_fix.app.conf.chord_ledger = has_ledger
    ids = send_in_vain(broken(with_fix.tasks, position))
    with_fix.app.conf.chord_ledger = True

    wait_until(with_fix.is_idle, what="idle worker")
    # Up to 5.6 Celery alone does not look whether a chord is closed: its key expires.
    parts = () if has_ledger or celery_version() >= celery_5_7 else (".j",)
    wait_until(
        lambda: not [t for t in traces(with_fix, *ids) if not t.endswith(parts)], what="none"
    )
    assert "Traceback" not in with_fix.worker.log_text()


@on_both
@pytest.mark.parametrize("place", ["member", "last member", "end of a chain"])
def test_chord_around_leaves_no_trace(with_fix, place):
    t = with_fix.tasks
    inner = broken(t, 2)
    header = {
        "member": [t.echo.s(1), inner, t.echo.s(3)],
        "last member": [t.echo.s(1), inner],
        "end of a chain": [t.echo.s(1), chain(t.echo.s(UNSENDABLE), group(t.echo.s(), t.echo.s()))],
    }[place]

    ids = send_in_vain(chord(header, t.collect.s()))

    assert ids
    wait_until(with_fix.is_idle, what="idle worker")
    wait_until(lambda: not traces(with_fix, *ids), what="no traces")


@on_both
def test_members_of_a_generator_that_raises_leave_no_trace(with_fix):
    t = with_fix.tasks

    def members():
        yield from (t.echo.s(i) for i in range(4))
        raise LookupError("no more")

    ids = send_in_vain(chord(members(), t.collect.s()), LookupError)

    wait_until(with_fix.is_idle, what="idle worker")
    wait_until(lambda: not traces(with_fix, *ids), what="no traces")


@on_both
def test_chord_without_a_broker_leaves_no_trace(with_fix):
    settings = {"broker_url": "redis://127.0.0.1:1/0", "task_publish_retry": False}
    config = with_fix.config
    app = make_app({**config, "settings": {**config["settings"], **settings}}, patched=True)
    t = named(app)

    ids = send_in_vain(chord([t.echo.s(1)], t.collect.s(), app=app), OperationalError)

    assert not traces(with_fix, *ids)
    app.close()


@contextlib.contextmanager
def confirmation_lost(app, arg):
    """Have the broker's answer to the message with this argument never come."""
    publish = app.amqp.send_task_message

    def send_message(producer, name, message, *args, **kwargs):
        answer = publish(producer, name, message, *args, **kwargs)
        if message.body[0] == (arg,):
            raise OperationalError("no confirmation")
        return answer

    app.amqp.__dict__["send_task_message"] = send_message
    try:
        yield
    finally:
        app.amqp.__dict__["send_task_message"] = publish


@on_both
@pytest.mark.parametrize("last", [False, True], ids=["flat", "nested"])
def test_chord_that_may_have_been_sent_completely_goes_on(with_fix, last, record):
    t = with_fix.tasks
    body = t.collect.s(record=record.path)
    inner = chord([t.echo.s(2), t.echo.s(3)], t.collect.s())
    canvas = chord([t.echo.s(1), inner if last else t.echo.s(3)], body)

    with confirmation_lost(with_fix.app, 3):
        send_in_vain(canvas, OperationalError)

    wait_until(lambda: record.count("body"), what="the body")


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_caller_gets_the_error_though_the_backend_is_away(with_fix, monkeypatch, backend_kind):
    def refuse(*_, **__):
        raise ConnectionError("away")

    ledger = type(ledger_of(with_fix.app.backend))
    monkeypatch.setattr(ledger, "abandon", refuse)

    assert send_in_vain(broken(with_fix.tasks, 1))
