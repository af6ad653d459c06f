from __future__ import annotations

import pytest
from celery import chord

#: Where chords are counted each task is frozen before it is sent, with this fix or without.
polled = pytest.mark.cluster(settings={"chord_ledger": False})


def canvas(t):
    # The first member is the last to return.
    return chord((t.slow.s(i, 0.0 if i else 0.3) for i in range(5)), t.collect.s())


@polled
@pytest.mark.parametrize("backend_kind", ["sqlite"])
def test_chord_with_a_generator_header_never_ends(without_fix):
    assert without_fix.outcome(canvas(without_fix.tasks), quiet=0.7).hung


@pytest.mark.parametrize(
    "backend_kind", ["redis", "sqlite", pytest.param("sqlite", marks=polled, id="sqlite-polled")]
)
def test_all_tasks_of_a_generator_header_run_and_keep_their_order(with_fix):
    assert [0, 1, 2, 3, 4] == with_fix.run(canvas(with_fix.tasks))
