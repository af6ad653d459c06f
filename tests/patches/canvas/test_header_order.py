from __future__ import annotations

import pytest
from celery import chord, group

pytestmark = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def canvas(t):
    return chord([t.echo.s(1), group(t.echo.s(2), t.echo.s(3)), t.echo.s(4)], t.collect.s())


def test_results_of_a_nested_group_come_back_reversed(without_fix):
    assert [1, 3, 2, 4] == without_fix.run(canvas(without_fix.tasks))


def test_results_of_a_nested_group_come_in_header_order(with_fix):
    assert [1, 2, 3, 4] == with_fix.run(canvas(with_fix.tasks))


def test_groups_nested_to_any_depth_come_in_header_order(with_fix):
    t = with_fix.tasks
    inner = group(t.echo.s(2), group(t.echo.s(3), group(t.echo.s(4), t.echo.s(5))))

    assert [1, 2, 3, 4, 5, 6] == with_fix.run(
        chord(group(t.echo.s(1), inner, t.echo.s(6)), t.collect.s())
    )


def test_canvas_can_be_published_twice(with_fix):
    t = with_fix.tasks
    header = group(t.echo.s(1), group(t.echo.s(2), t.echo.s(3)), t.echo.s(4))
    canvas_of_a_group = chord(header, t.collect.s())

    assert [1, 2, 3, 4] == with_fix.run(canvas_of_a_group)
    assert [1, 2, 3, 4] == with_fix.run(canvas_of_a_group)
