"""Headers that are generators: taken as Celery alone takes them, whoever counts the chord."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chord
from celery.signals import before_task_publish

from tests.app_factory import make_app
from tests.harness import Stack
from tests.tasks import named


@pytest.fixture
def producer(servers, require):
    """Return a function that makes an app on a new stack."""
    made = []

    def make(backend, patched, **settings):
        require("redis")
        stack = Stack(servers, backend, "redis")
        app = make_app(stack.config(settings), patched=patched)
        made.append((stack, app))
        return app

    yield make
    for stack, app in made:
        app.close()
        stack.close()


def story(app, count):
    """Return what happens as a chord starts: a number as a task is taken, `sent` as one is sent."""
    happened: list[Any] = []

    def note(sender, **_):
        if sender == "tests.echo":
            happened.append("sent")

    def members():
        for i in range(count):
            happened.append(i)
            yield tasks.echo.s(i)

    tasks = named(app)
    before_task_publish.connect(note, weak=False)
    try:
        chord(members(), tasks.collect.s(), app=app).apply_async()
    finally:
        before_task_publish.disconnect(note)
    return happened


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("backend", ["redis", "sqlite"])
def test_tasks_are_taken_no_earlier_than_by_celery_alone(producer, backend, count):
    # On SQL Celery itself takes all of them before it sends one.
    as_by_celery = story(producer("redis", False), count)
    if count > 4:
        assert as_by_celery.index("sent") < as_by_celery.index(count - 1)

    happened = story(producer(backend, True), count)

    assert count == happened.count("sent")
    for number in range(count):
        assert happened[: happened.index(number)].count("sent") >= as_by_celery[
            : as_by_celery.index(number)
        ].count("sent")
