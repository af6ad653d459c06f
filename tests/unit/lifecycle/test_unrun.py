from __future__ import annotations

import logging

import pytest
from celery import Celery
from celery.utils import uuid
from kombu import Message

from chordguard import log
from chordguard.ledger.packing import pack_data
from chordguard.lifecycle.unrun import member_of, request_of
from tests.unit.lifecycle.test_counting import empty_ledger


@pytest.fixture(params=["redis", "sqlite"])
def ledger(request, servers, require, tmp_path):
    require(*({request.param} - {"sqlite"}))
    with empty_ledger(request.param, servers, tmp_path) as ledger:
        yield ledger


def start(ledger, header, serializer="json"):
    """Start a chord whose body is packed by a producer with that serializer."""
    producer = Celery("producer", set_as_current=False)
    producer.conf.task_serializer = serializer
    group_id = uuid()
    body = producer.signature("tests.collect").set(task_id="body")
    ledger.open(group_id, header, pack_data(producer, body), 1.0, None)
    return group_id


def message(group_id, task_id="a", body="[[], {}, {}]", kind="application/json"):
    headers = {"id": task_id, "task": "tests.echo", "group": group_id, "group_index": 0}
    return Message(body, content_type=kind, content_encoding="utf-8", headers=headers)


@pytest.mark.parametrize("header", [["a", "b"], ["b", ["a"]], None])
def test_member_of_a_live_chord(ledger, header):
    group_id = start(ledger, header)

    request = member_of(ledger.backend, message(group_id))

    assert ("a", group_id, 0) == (request.id, request.group, request.group_index)
    assert "body" == request.chord.id


def test_member_of_a_chord_whose_body_cannot_be_read(ledger, caplog, monkeypatch):
    monkeypatch.setattr(log, "_warned", set())
    caplog.set_level(logging.WARNING, "chordguard")
    group_id = start(ledger, ["a"], serializer="pickle")

    request = member_of(ledger.backend, message(group_id))

    assert ("a", None) == (request.id, request.chord)
    assert f"Cannot read the body of chord {group_id}" in caplog.text


@pytest.mark.parametrize("task_id", ["c", None])
def test_no_member_of_a_live_chord(ledger, task_id):
    group_id = start(ledger, ["a", "b"])

    assert member_of(ledger.backend, message(group_id, task_id)) is None


@pytest.mark.parametrize("group_id", ["a-group", None])
def test_member_of_no_chord(ledger, group_id):
    assert member_of(ledger.backend, message(group_id)) is None


def test_without_the_ledger_nobody_knows_the_chord(ledger):
    group_id = start(ledger, ["a"])
    ledger.backend.app.conf.chord_ledger = False

    assert member_of(ledger.backend, message(group_id)) is None


def test_request_of_a_message_that_can_be_read():
    request = request_of(message("g", body='[[1], {"x": 2}, {"chain": []}]'))

    assert ("a", "g", [1], {"x": 2}, []) == (
        request.id,
        request.group,
        request.args,
        request.kwargs,
        request.chain,
    )


def test_request_of_a_message_of_the_old_protocol():
    request = request_of(message(None, body='{"id": "b", "taskset": "g"}'))

    assert ("b", "g") == (request.id, request.group)


@pytest.mark.parametrize(
    "unreadable",
    [
        message("g", body="[[], {"),
        message("g", body="[]"),
        message("g", body="3"),
        message("g", kind="application/x-python-serialize"),
        Message("[[], {}, {}]", headers={"compression": "application/x-unknown"}),
    ],
)
def test_request_of_a_message_that_cannot_be_read(unreadable):
    unreadable.accept = {"application/json"}

    assert request_of(unreadable) is None
