from __future__ import annotations

import pytest
from celery import chord

#: So many that the right order does not come about by chance.
NUMBERS = list(range(8))


def canvas(t):
    return chord([t.echo.s("first"), t.replace_with_group.s(NUMBERS)], t.collect.s())


# The ledger knows the members, and mends that, too.
@pytest.mark.cluster(settings={"chord_ledger": False})
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_results_of_a_member_replaced_by_a_group_come_in_any_order(without_fix):
    first, numbers = without_fix.run(canvas(without_fix.tasks))

    assert "first" == first
    assert NUMBERS == sorted(numbers)
    assert NUMBERS != numbers


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
def test_results_of_a_member_replaced_by_a_group_keep_their_order(with_fix):
    assert ["first", NUMBERS] == with_fix.run(canvas(with_fix.tasks))
