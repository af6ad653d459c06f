from __future__ import annotations

import pytest
from celery import chain, chord, group, signature

from chordguard import tolerant
from tests.harness import is_ready

NAME = "tests.not_registered"
FAILED = "NotRegistered: tests.not_registered"

polled = pytest.mark.cluster(settings={"chord_ledger": False})
uncounted = pytest.param("redis", marks=polled, id="redis-uncounted")


def unregistered(t):
    return signature(NAME)


def unregistered_in_a_chain(t):
    return chain(t.echo.s(1), signature(NAME), t.echo.s())


def unregistered_in_a_group(t):
    return group(t.echo.s(1), group(signature(NAME)))


def unregistered_and_unreadable(t):
    return signature(NAME).set(serializer="pickle")


def unregistered_body(t):
    return chord([t.echo.s(1)], signature(NAME))


MEMBERS = [unregistered, unregistered_in_a_chain, unregistered_in_a_group, unregistered_body]


def canvas(t, member):
    return tolerant(chord([member(t), t.echo.s(2)], t.collect.s()))


@pytest.mark.parametrize("backend_kind", ["redis", uncounted])
def test_chord_of_an_unregistered_member_hangs(without_fix):
    """On SQL Celery alone finds the stored failure of a task, but never that of a chain."""
    results = [canvas(without_fix.tasks, member).apply_async() for member in MEMBERS]

    assert without_fix.outcome(results[0], quiet=0.7).hung
    assert not any(is_ready(result) for result in results)


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite", uncounted])
def test_unregistered_member_counts_as_failed(with_fix):
    t = with_fix.tasks
    results = [canvas(t, member).apply_async() for member in MEMBERS]
    body = chord([t.echo.s(1)], chain(signature(NAME), t.echo.s())).apply_async()

    values = [with_fix.run(result) for result in results]
    outcome = with_fix.outcome(body)

    assert [[FAILED, 2], [FAILED, 2], [1, FAILED, 2], [FAILED, 2]] == values
    assert "FAILURE" == outcome.state, outcome


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_unregistered_member_whose_message_cannot_be_read_counts_as_failed(with_fix):
    assert [FAILED, 2] == with_fix.run(canvas(with_fix.tasks, unregistered_and_unreadable))


@pytest.mark.cluster(settings={"task_protocol": 1})
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_unregistered_member_counts_as_failed_in_the_old_protocol(with_fix):
    assert [FAILED, 2] == with_fix.run(canvas(with_fix.tasks, unregistered))
