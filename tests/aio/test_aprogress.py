"""How far a chord is, told in an event loop until it has ended."""

from __future__ import annotations

import asyncio
import threading

import pytest
from celery import chord
from celery.exceptions import TimeoutError as NotInTime

from chordguard import progress, strict, tolerant
from chordguard.aio import aprogress, hub
from chordguard.errors import LedgerMissing


@pytest.fixture(params=["redis", "postgresql", "mysql"])
def backend_kind(request):
    return request.param


async def told(chord_, app=None, **options):
    return [
        (found.state, found.total, found.done, found.failed)
        async for found in aprogress(chord_, app, interval=0.05, timeout=20, **options)
    ]


def test_until_the_chord_has_ended(cluster, gate):
    t = cluster.tasks
    header = [t.echo.s(1), t.fail.s(), t.wait_for_file.s(gate.path)]
    result = tolerant(chord(header, t.collect.s())).apply_async()

    async def follow():
        following = [
            asyncio.create_task(told(*arguments))
            for arguments in [(result,), (result.id, cluster.app), (result.parent.id, cluster.app)]
        ]
        while progress(result).done < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        gate.open()
        return await asyncio.gather(*following)

    for steps in asyncio.run(follow()):
        assert ("running", 3, 2, 1) in steps
        assert ("tolerated", 3, 3, 1) == steps[-1]
        assert [step[2] for step in steps] == sorted(step[2] for step in steps)
        assert len(steps) == len(set(steps))


def test_of_a_chord_that_has_ended(cluster):
    t = cluster.tasks
    result = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s())).apply_async()
    cluster.outcome(result)

    assert ("failed", 2, 2, 1) == asyncio.run(told(result))[-1]


def test_in_time(cluster, gate):
    t = cluster.tasks
    result = chord([t.wait_for_file.s(gate.path)] * 2, t.collect.s()).apply_async()

    async def follow():
        async for _ in aprogress(result, interval=0.05, timeout=0.3):
            pass

    with pytest.raises(NotInTime):
        asyncio.run(follow())
    gate.open()
    cluster.run(result)


def test_many_are_asked_for_together(cluster, gate, monkeypatch):
    t = cluster.tasks
    results = [
        chord([t.echo.s(1), t.wait_for_file.s(gate.path)], t.collect.s()).apply_async()
        for _ in range(20)
    ]
    looks, alone = [], threading.Lock()
    read = hub.Hub._read

    def counting(self, ids, chords):
        assert alone.acquire(blocking=False), "two threads at once"
        try:
            looks.append(len(chords))
            return read(self, ids, chords)
        finally:
            alone.release()

    monkeypatch.setattr(hub.Hub, "_read", counting)

    async def follow():
        following = [asyncio.create_task(told(result)) for result in results]
        while len(results) not in looks[1:]:
            await asyncio.sleep(0.02)
        gate.open()
        return await asyncio.gather(*following)

    assert {"succeeded"} == {steps[-1][0] for steps in asyncio.run(follow())}


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.cluster(settings={"chord_ledger": False})
def test_without_a_ledger_members_are_read(cluster, gate):
    t = cluster.tasks
    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path)], t.collect.s()).apply_async()

    async def follow():
        steps = []
        async for found in aprogress(result, interval=0.05, timeout=20):
            steps.append((found.state, found.done))
            if found.done == 1:
                gate.open()
        return steps

    assert ("succeeded", 2) == asyncio.run(follow())[-1]
    with pytest.raises(LedgerMissing):
        asyncio.run(told(result.id, cluster.app))
