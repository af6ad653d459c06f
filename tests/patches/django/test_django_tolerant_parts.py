from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from chordguard import strict, tolerant
from tests.django.backends import on_all, on_postgresql

#: Where a ledger counts chords it ends them.
pytestmark = pytest.mark.cluster(settings={"chord_ledger": False})


def failing(t):
    return chord([t.echo.s(1), t.fail.s("a"), t.echo.s(3), t.fail.s("b")], t.collect.s())


@on_postgresql
def test_failed_member_keeps_the_body_from_running(without_fix):
    ended = without_fix.outcome(tolerant(failing(without_fix.tasks)))

    assert isinstance(ended.value, ChordError)
    assert str(ended.value) in ("ValueError('a')", "ValueError('b')")


@on_all
def test_failed_member_is_tolerated(with_fix):
    t = with_fix.tasks

    assert [1, "ValueError: a", 3, "ValueError: b"] == with_fix.run(tolerant(failing(t)))
    inner = chain(t.echo.s(1), group(t.fail_after.s(), t.echo.s()))
    header = [inner, chord([t.fail.s(), t.echo.s(2)], t.collect.s())]
    value = [["ValueError: boom", 1], "ChordError"]
    outer = with_fix.run(tolerant(chord(header, t.collect.s())))
    assert value == [outer[0], outer[1].partition(":")[0]]


@on_all
def test_failed_chord_names_its_members(with_fix, record):
    t = with_fix.tasks
    canvas = strict(failing(t)).on_error(t.errback_new.s(record=record.path))
    ended = with_fix.outcome(canvas)

    first, second = (ended.result.parent[index].id for index in (1, 3))
    assert f"Dependency {first} raised ValueError('a'); also failed: {second}" in str(ended.value)
    assert [f"errback_new {ended.result.id} ChordError: {ended.value}"] == record.lines()


@on_all
def test_good_chord_gives_its_results(with_fix):
    t = with_fix.tasks

    assert [1, 2] == with_fix.run(chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))


@pytest.mark.nightly
@pytest.mark.alone
@on_postgresql
def test_results_are_read_at_once(clusters, backend_kind, tmp_path):
    sent = tmp_path / "statements"
    sent.touch()
    cost = {}
    for patched in (False, True):
        settings = {"chord_ledger": False} if patched else {}
        with clusters.alone(
            backend_kind, patched=patched, statements=str(sent), settings=settings
        ) as cluster:
            t = cluster.tasks
            before = sent.stat().st_size
            cluster.run(chord([t.echo.s(i) for i in range(60)], t.collect.s()))
            cost[patched] = sent.stat().st_size - before

    assert cost[True] < cost[False] - 60
