from __future__ import annotations

from datetime import timedelta

import pytest
from celery import Celery
from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st

from chordguard import counting, strict
from tests import tasks


@pytest.fixture
def app():
    app = Celery("counting", broker="memory://", backend="db+sqlite://", set_as_current=False)
    tasks.register(app)
    return app


@pytest.fixture
def t(app):
    return tasks.named(app)


class TestDelays:
    def test_safety_net_looks_late_and_seldom(self, app):
        delays = [counting.next_delay(app, look) for look in range(6)]

        assert 30.0 == counting.first_delay(app, None)
        assert [30.0, 60.0, 120.0, 240.0, 300.0, 300.0] == delays

    @pytest.mark.parametrize("value", [5, timedelta(seconds=5)])
    def test_first_delay_is_a_setting(self, app, value):
        app.conf.chord_unlock_first_delay = value

        assert 5.0 == counting.first_delay(app, None)
        assert [5.0, 10.0] == [counting.next_delay(app, look) for look in range(2)]

    def test_it_never_looks_all_the_time(self, app):
        app.conf.chord_unlock_first_delay = 0

        assert 0.0 == counting.first_delay(app, None)
        assert [1.0, 2.0] == [counting.next_delay(app, look) for look in range(2)]

    def test_it_looks_when_the_chord_may_time_out(self, app, t):
        app.conf.chord_timeout = 20

        assert 20.0 == counting.first_delay(app, None)
        assert 10.0 == counting.first_delay(app, strict(t.collect.s(), timeout=10))
        assert 30.0 == counting.first_delay(app, strict(t.collect.s(), timeout=None))


@given(look=st.integers(0, 10**6), first=st.floats(0, 10**6))
def test_delay_never_leaves_its_bounds(look, first):
    app = Celery("bounds", set_as_current=False)
    app.conf.chord_unlock_first_delay = first

    assert 1.0 <= counting.next_delay(app, look) <= counting.SLOWEST


def test_safety_net_of_a_chord_has_an_id_of_its_own():
    assert counting.unlock_id("a") == counting.unlock_id("a")
    assert counting.unlock_id("a") != counting.unlock_id("b")
    assert 36 == len(counting.unlock_id("a"))


class TestParts:
    def request(self, name, **options):
        return Context(id="a", task=tasks.PREFIX + name, **options)

    def test_result_that_is_stored_is_not_brought_along(self, app):
        assert counting.part_of(app.backend, self.request("echo"), "SUCCESS", 1).payload is None

    @pytest.mark.parametrize(
        ("name", "options"), [("ignored_result", {}), ("echo", {"ignore_result": True})]
    )
    def test_result_that_is_ignored_is_brought_along(self, app, name, options):
        part = counting.part_of(app.backend, self.request(name, **options), "SUCCESS", {"b": [1]})

        assert "a" == part.task_id
        assert isinstance(part.payload, bytes)
        assert ["SUCCESS", {"b": [1]}] == list(app.backend.decode(part.payload))
