from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from chordguard.lifecycle.polling import PROGRESS, Poll, PolledHeader, delay_before


@pytest.fixture
def app():
    return Celery("polling", broker="memory://", backend="db+sqlite://", set_as_current=False)


def unlock_task(app, **values):
    values = {"max_retries": None, "default_retry_delay": 1.0, **values}
    return SimpleNamespace(app=app, **values)


def delays(app, polls=5, interval=None):
    return [delay_before(app, unlock_task(app), poll, interval) for poll in range(polls)]


class TestDelay:
    def test_is_that_of_the_task_where_nothing_is_set(self, app):
        assert [1.0] * 5 == delays(app)

    @pytest.mark.parametrize("value", [3, 3.0, timedelta(seconds=3)])
    def test_setting_is_stronger_than_the_task(self, app, value):
        app.conf.chord_unlock_retry_delay = value

        assert [3.0] * 5 == delays(app)

    def test_interval_of_the_chord_is_stronger_than_the_setting(self, app):
        app.conf.chord_unlock_retry_delay = 3

        assert [0.5] * 5 == delays(app, interval=0.5)

    def test_grows_by_its_factor_up_to_the_ceiling(self, app):
        app.conf.update(chord_unlock_retry_backoff=2.0, chord_unlock_retry_backoff_max=5)

        assert [1.0, 2.0, 4.0, 5.0, 5.0] == delays(app)

    def test_ceiling_is_for_growth_alone(self, app):
        app.conf.update(chord_unlock_retry_delay=90, chord_unlock_retry_backoff=2.0)

        assert [90.0] * 5 == delays(app)

    @pytest.mark.parametrize("factor", [2.0, 2.5, 10.0, 1e300])
    def test_chord_may_be_polled_for_days(self, app, factor):
        app.conf.chord_unlock_retry_backoff = factor

        assert 60.0 == delay_before(app, unlock_task(app), 1_000_000)

    def test_jitter_spreads_it_between_half_and_all(self, app):
        app.conf.update(chord_unlock_retry_delay=10, chord_unlock_retry_jitter=True)

        spread = delays(app, polls=200)

        assert all(5 <= delay <= 10 for delay in spread)
        assert min(spread) < 7 < 8 < max(spread)


@given(
    delay=st.floats(0, 1000),
    factor=st.floats(1, 1e9),
    ceiling=st.floats(0.1, 1000),
    poll=st.integers(0, 10**6),
    jitter=st.booleans(),
)
def test_delay_never_leaves_its_bounds(delay, factor, ceiling, poll, jitter):
    app = Celery("bounds", set_as_current=False)
    app.conf.update(
        chord_unlock_retry_delay=delay,
        chord_unlock_retry_backoff=factor,
        chord_unlock_retry_backoff_max=ceiling,
        chord_unlock_retry_jitter=jitter,
    )

    found = delay_before(app, unlock_task(app), poll)

    assert delay * (0.5 if jitter else 1) <= found <= max(delay, ceiling)


class TestBound:
    @pytest.mark.parametrize(
        ("of_chord", "of_task", "of_setting", "expected"),
        [
            (None, None, None, None),
            (None, None, 7, 7),
            (None, 5, None, 5),
            (None, 5, 7, 5),
            (None, 7, 5, 5),
            (9, 5, 7, 9),
            (0, 5, 7, 0),
            (None, 0, 7, 0),
        ],
    )
    def test_chord_decides_else_the_lower_bound(self, app, of_chord, of_task, of_setting, expected):
        app.conf.chord_unlock_max_retries = of_setting
        task = unlock_task(app, max_retries=of_task)

        poll = Poll.of(task, ("group", {}), {"max_retries": of_chord})

        assert expected == poll.bound


class TestSettling:
    def poll(self, app, retries=0, **arguments):
        task = unlock_task(app, request=SimpleNamespace(retries=retries))
        return Poll.of(task, ("group", {}), arguments)

    def test_chord_that_moves_on_is_not_settled(self, app):
        app.conf.chord_timeout = 10

        assert self.poll(app, retries=1000).why_settle(9.9) is None

    def test_chord_without_progress_is_settled(self, app):
        app.conf.chord_timeout = 10

        reason = str(self.poll(app).why_settle(10.0))

        assert "after 10.0 seconds without progress (chord_timeout = 10)" == reason

    def test_chord_at_its_bound_is_settled(self, app):
        poll = self.poll(app, retries=2, max_retries=2)

        assert "after 3 polls (the bound is 2 retries)" == str(poll.why_settle(0))
        assert self.poll(app, retries=1, max_retries=2).why_settle(0) is None


class TestAskedDelay:
    def test_nobody_asks_by_default(self, app):
        assert TestSettling().poll(app).asked_delay is None

    def test_setting_asks(self, app):
        app.conf.chord_unlock_retry_delay = 3

        assert 3.0 == TestSettling().poll(app).asked_delay

    def test_interval_of_the_chord_asks_and_is_stronger(self, app):
        app.conf.chord_unlock_retry_delay = 3

        assert 0.5 == TestSettling().poll(app, interval=0.5).asked_delay


class TestPoll:
    def test_arguments_come_by_position_or_by_name(self, app):
        given = {
            "group_id": "group",
            "callback": {},
            "interval": 2,
            "max_retries": 3,
            "result": [[["a", None], None]],
        }

        by_name = Poll.of(unlock_task(app), (), given)
        by_position = Poll.of(unlock_task(app), tuple(given.values()), {})

        assert ("group", {}, 2, 3) == (
            by_name.group_id,
            by_name.body,
            by_name.interval,
            by_name.max_retries,
        )
        assert ["a"] == by_name.header.ids == by_position.header.ids

    @pytest.mark.parametrize("progress", [None, 1, "ab", [], [None, None], ["x", 1.0], {}])
    def test_garbage_about_progress_is_a_first_poll(self, app, progress, monkeypatch):
        monkeypatch.setattr(PolledHeader, "ready_count", 2)
        poll = Poll.of(unlock_task(app), ("group", {}), {PROGRESS: progress, "result": []})

        assert (2, 100.0) == poll._last_progress(100.0)

    def test_progress_is_never_in_the_future(self, app):
        poll = Poll.of(unlock_task(app), ("group", {}), {PROGRESS: [1, 200.0]})

        assert (1, 100.0) == poll._last_progress(100.0)
