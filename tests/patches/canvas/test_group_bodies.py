from __future__ import annotations

import pytest
from celery import chain, chord, group

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def gives_a_group(t):
    return chord([t.echo.si(1)], group(t.collect.s(), t.collect.s()))


def followed_by_a_group(t):
    return gives_a_group(t) | group(t.collect.s(), t.collect.s())


def followed_by_a_chain(t):
    return gives_a_group(t) | chain(t.collect.s(), t.collect.s())


def followed_by_a_chord(t):
    return chain(gives_a_group(t), chord([t.collect.s(), t.collect.s()], t.collect.s()))


def inside_a_body(t):
    body = chain(t.collect.s(), gives_a_group(t) | group(t.collect.s(), t.collect.s()))
    return chord([t.echo.s(1)], body)


def inside_a_header(t):
    return chord([followed_by_a_group(t), followed_by_a_chain(t)], t.collect.s())


#: What the group gives, whatever it is given.
BOTH = [[1], [1]]


@pytest.mark.parametrize(
    ("canvas", "expected"), [(followed_by_a_group, [BOTH, BOTH]), (followed_by_a_chain, BOTH)]
)
def test_what_follows_runs_for_each_task_of_the_group(without_fix, canvas, expected):
    assert expected != without_fix.run(canvas(without_fix.tasks))


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        (followed_by_a_group, [BOTH, BOTH]),
        (followed_by_a_chain, BOTH),
        (followed_by_a_chord, [BOTH, BOTH]),
        (inside_a_header, [[BOTH, BOTH], BOTH]),
        (inside_a_body, [BOTH, BOTH]),
    ],
)
def test_what_follows_runs_once_with_the_list(with_fix, canvas, expected):
    assert expected == with_fix.run(canvas(with_fix.tasks))


def test_canvas_can_be_published_twice(with_fix):
    canvas = followed_by_a_group(with_fix.tasks)

    assert [BOTH, BOTH] == with_fix.run(canvas)
    assert [BOTH, BOTH] == with_fix.run(canvas)
