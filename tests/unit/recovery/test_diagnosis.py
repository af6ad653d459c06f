from __future__ import annotations

import pytest
from celery import Celery, chain, chord, group

from chordguard.upstream.awaited import group_id_of
from tests import tasks


@pytest.fixture
def t():
    app = Celery("ids", broker="memory://", backend="cache+memory://", set_as_current=False)
    tasks.register(app)
    return tasks.named(app)


def test_id_is_the_id():
    assert "some-id" == group_id_of("some-id")


def test_chord_with_a_simple_body(t):
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).freeze()

    assert result.parent.id == group_id_of(result)


def test_result_of_the_header(t):
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).freeze()

    assert result.parent.id == group_id_of(result.parent)


def test_chord_whose_body_is_a_chain(t):
    result = chord([t.echo.s(1), t.echo.s(2)], chain(t.collect.s(), t.echo.s())).freeze()
    header = result.parent.parent

    assert header.id == group_id_of(result)


def test_chord_whose_body_is_a_group(t):
    body = group(t.collect.s(), t.collect.s())
    header = group(t.echo.s(1), t.echo.s(2)).freeze()
    result = body.freeze()
    result.parent = header

    assert header.id == group_id_of(result)


@pytest.mark.parametrize("other", [None, 7, {"id": "x"}])
def test_anything_else_is_refused_and_named(other):
    with pytest.raises(TypeError, match=r"expected the id of a chord's header or a chord's result"):
        group_id_of(other)


def test_task_without_a_chord_is_refused(t):
    with pytest.raises(TypeError, match="what chord"):
        group_id_of(t.echo.s(1).freeze())
