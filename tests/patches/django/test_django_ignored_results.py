from __future__ import annotations

import pytest
from celery import chain, chord

from chordguard import tolerant
from tests.django.backends import on_all, on_sqlite

#: Where a ledger counts chords it keeps what is not stored.
pytestmark = pytest.mark.cluster(settings={"chord_ledger": False})
#: With that fix the chord that was counted down to no avail is polled, in vain, too.
without_polls = pytest.mark.cluster(
    settings={"chord_ledger": False, "chord_fix_django_tolerant_parts": False}
)


def succeeding(t):
    return chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s())


def failing(t):
    return chord([t.forgotten_step.s(does="fails", name="boom"), t.echo.s(2)], t.collect.s())


def failing_step(t):
    """Return a chord of which a member never runs: the step before it fails."""
    step = t.forgotten_step.s(does="fails", name="boom")
    return chord([chain(step, t.echo.s()), t.echo.s(2)], t.collect.s())


#: Chords, and what a tolerant one gives.
CANVASES = {
    succeeding: [1, 2],
    failing: ["ValueError: boom", 2],
    failing_step: ["ValueError: boom", 2],
}


@without_polls
@on_sqlite
def test_chord_ends_never(without_fix):
    assert without_fix.outcome(succeeding(without_fix.tasks), quiet=1.2).hung


@on_all
@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: canvas.__name__)
def test_chord_ends(with_fix, canvas):
    assert CANVASES[canvas] == with_fix.run(tolerant(canvas(with_fix.tasks)))
