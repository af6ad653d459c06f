"""Results are awaited in an event loop as `get()` waits for them in a thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as NotInTime
from celery.result import allow_join_result

from chordguard import strict, tolerant
from chordguard.aio import aget, hub, subscription

#: How many wait at once.
MANY = 100


@pytest.fixture(params=["redis", "postgresql", "mysql"])
def backend_kind(request):
    return request.param


def value_of(result, **options):
    return asyncio.run(aget(result, timeout=20, **options))


def test_value_of_a_chord(cluster):
    t = cluster.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()).apply_async()

    assert 3 == value_of(result)
    assert 3 == value_of(result)


def test_values_of_other_results(cluster):
    t = cluster.tasks
    nested = group(t.echo.s(1), chain(t.echo.s(2), group(t.echo.s(), t.echo.s())))

    assert 5 == value_of(t.echo.s(5).apply_async())
    assert 3 == value_of(chain(t.echo.s(1), t.add.s(2)).apply_async())
    assert [1, [2, 2]] == value_of(nested.apply_async())
    body = group(t.collect.s(), t.collect.s())
    assert [[1, 2], [1, 2]] == value_of(chord([t.echo.s(1), t.echo.s(2)], body).apply_async())
    assert value_of(t.forgotten_step.s(name="a", does="returns").apply_async()) is None


def raised(wait, *args, **options):
    with pytest.raises(Exception) as caught:
        wait(*args, **options)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", ["strict", "without parents", "task", "chain", "group"])
def test_error_is_that_of_get(cluster, kind):
    t = cluster.tasks
    failing = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s()))
    canvas = {
        "task": t.fail.s(),
        "chain": chain(t.fail.s(), t.echo.s()),
        "group": group(t.echo.s(1), t.fail.s()),
    }.get(kind, failing)
    result = canvas.apply_async()
    if kind == "without parents":
        result = cluster.app.AsyncResult(result.id)

    found = raised(value_of, result)

    assert raised(result.get, timeout=20) == found
    assert (ChordError if kind == "without parents" else ValueError) is found[0]


def test_error_of_a_member_comes_before_the_chord_ends(cluster, gate):
    t = cluster.tasks
    header = [t.fail.s(), t.wait_for_file.s(gate.path)]
    result = strict(chord(header, t.collect.s())).apply_async()

    assert (ValueError, "boom") == raised(value_of, result)
    assert not result.ready()
    gate.open()
    cluster.outcome(result)


def test_tolerated_error_is_not_raised(cluster):
    t = cluster.tasks
    result = tolerant(chord([t.fail.s(), t.echo.s(1)], t.collect.s())).apply_async()

    assert ["ValueError: boom", 1] == value_of(result)


def test_error_is_returned_if_asked(cluster):
    result = cluster.tasks.fail.s().apply_async()

    assert isinstance(value_of(result, propagate=False), ValueError)


def test_timeout_is_that_of_get(cluster, gate):
    result = cluster.tasks.wait_for_file.s(gate.path, 7).apply_async()
    started = time.monotonic()

    with pytest.raises(NotInTime):
        asyncio.run(aget(result, timeout=0.3))
    assert 0.3 <= time.monotonic() - started < 5
    gate.open()
    assert 7 == value_of(result)


def test_cancelled_waiting_leaves_nothing(cluster, gate):
    result = cluster.tasks.wait_for_file.s(gate.path, 7).apply_async()

    async def cancel():
        waiting = asyncio.create_task(aget(result))
        other = asyncio.create_task(aget(result))
        await asyncio.sleep(0.3)
        hubs = hub._hubs[asyncio.get_running_loop()]
        (one,) = hubs.values()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert 1 == len(one._results[result.id])
        gate.open()
        assert 7 == await other
        assert {} == one._results
        await asyncio.sleep(2 * hub.LINGER + 0.5)
        assert {} == hubs
        assert [asyncio.current_task()] == list(asyncio.all_tasks())

    asyncio.run(cancel())


def test_many_wait_in_one_thread_at_a_time(cluster, gate):
    t = cluster.tasks
    results = [
        chord([t.echo.s(n), t.echo.s(n)], t.tsum.s()).apply_async() for n in range(MANY // 2)
    ]
    late = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 1)], t.tsum.s()).apply_async()
    threads = set()

    async def wait():
        waiting = [asyncio.create_task(aget(result)) for result in [*results, *[late] * MANY]]
        while not all(task.done() for task in waiting[: len(results)]):
            threads.update(thread.name for thread in threading.enumerate())
            await asyncio.sleep(0.01)
        gate.open()
        return await asyncio.gather(*waiting)

    assert [2 * n for n in range(MANY // 2)] + [2] * MANY == asyncio.run(wait())
    # The executor may start another one before the last has come back to it.
    assert 2 >= len([name for name in threads if name.startswith("asyncio_")])


def test_within_a_task_it_is_refused(cluster):
    from celery._state import _set_task_join_will_block

    result = cluster.tasks.echo.s(1).apply_async()
    _set_task_join_will_block(True)
    try:
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            value_of(result)
        with allow_join_result():
            assert 1 == value_of(result)
    finally:
        _set_task_join_will_block(False)


def test_result_backend_that_is_away_is_told(cluster, monkeypatch):
    result = cluster.tasks.echo.s(1).apply_async()

    def fail(*_):
        raise OSError("away")

    monkeypatch.setattr(hub, "_ready", fail)
    assert (OSError, "away") == raised(value_of, result)


@pytest.mark.parametrize("backend_kind", ["redis"])
class TestSubscription:
    def test_result_is_announced(self, cluster, gate, monkeypatch):
        monkeypatch.setattr(hub, "REREAD", 3600)
        result = cluster.tasks.wait_for_file.s(gate.path, 7).apply_async()

        async def wait():
            waiting = asyncio.create_task(aget(result, timeout=20))
            (one,) = await opened()
            gate.open()
            assert 7 == await waiting
            assert one._subscription.is_open

        asyncio.run(wait())

    def test_long_result_is_read(self, cluster, gate, monkeypatch):
        monkeypatch.setattr(hub, "REREAD", 3600)
        monkeypatch.setattr(hub, "LARGE", 1)
        result = cluster.tasks.wait_for_file.s(gate.path, 7).apply_async()

        async def wait():
            waiting = asyncio.create_task(aget(result, timeout=20))
            await opened()
            gate.open()
            assert 7 == await waiting

        asyncio.run(wait())

    def test_connection_that_is_lost_is_made_again(self, cluster, gate, monkeypatch):
        monkeypatch.setattr(hub, "REREAD", 3600)
        monkeypatch.setattr(subscription, "RETRY", 0.2)
        result = cluster.tasks.wait_for_file.s(gate.path, 7).apply_async()
        client = cluster.app.backend.client

        async def wait():
            waiting = asyncio.create_task(aget(result, timeout=20))
            (one,) = await opened()
            before = one._subscription._pubsub
            name = before.connection._writer.get_extra_info("sockname")
            client.client_kill(f"{name[0]}:{name[1]}")
            while one._subscription._pubsub in (None, before) or not one._subscription.ids:
                await asyncio.sleep(0.02)
            gate.open()
            assert 7 == await waiting

        asyncio.run(wait())

    def test_without_asyncio_in_the_driver_results_are_polled(self, cluster, monkeypatch):
        monkeypatch.setattr(subscription, "client_of", lambda _: None)
        result = cluster.tasks.echo.s(1).apply_async()

        assert 1 == value_of(result)

    def test_those_that_nobody_awaits_any_more_are_left(self, cluster, gate):
        t = cluster.tasks
        late = t.wait_for_file.s(gate.path, 7).apply_async()

        async def wait():
            waiting = asyncio.create_task(aget(late, timeout=20))
            (one,) = await opened()
            for _ in range(3):
                await asyncio.gather(*(aget(t.echo.s(n).apply_async()) for n in range(MANY)))
            assert len(one._subscription.ids) <= 2 * MANY + 3
            gate.open()
            assert 7 == await waiting

        asyncio.run(wait())


async def opened():
    """Wait until the loop's hub has subscribed; return the hubs."""
    while True:
        await asyncio.sleep(0.02)
        hubs = list(hub._hubs.get(asyncio.get_running_loop(), {}).values())
        if hubs and hubs[0]._subscription.ids:
            return hubs
