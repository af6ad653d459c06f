from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.result import result_from_tuple

from chordguard import strict, tolerant

pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis", "sqlite"]),
    pytest.mark.cluster(settings={"chord_propagate_errors": False}),
]


def canvas(t):
    return chord([t.echo.s(1), t.fail.s()], t.collect.s())


def test_get_raises_an_error_that_was_tolerated(without_fix):
    t = without_fix.tasks
    # A body that takes a while: get() looks at the header as long as there is no result.
    result = chord([t.echo.s(1), t.fail.s()], t.slow.s(2)).apply_async()

    with pytest.raises((ValueError, ChordError), match="boom"):
        result.get(timeout=10)


def test_get_returns_the_value_of_the_body(with_fix):
    result = canvas(with_fix.tasks).apply_async()

    assert [1, "ValueError: boom"] == result.get(timeout=10)


def test_get_of_a_restored_result_returns_the_value_of_the_body(with_fix):
    as_tuple = canvas(with_fix.tasks).apply_async().as_tuple()

    result = result_from_tuple(as_tuple, app=with_fix.app)

    assert [1, "ValueError: boom"] == result.get(timeout=10)


def test_get_raises_what_a_strict_chord_died_of(with_fix):
    result = strict(canvas(with_fix.tasks)).apply_async()

    with pytest.raises((ValueError, ChordError), match="boom"):
        result.get(timeout=10)


def test_get_of_a_chain_of_tolerant_chords_returns_its_value(with_fix):
    t = with_fix.tasks
    chords = chain(
        tolerant(canvas(t)), group(t.collect.s(), t.fail_after.s()), tolerant(t.collect.s())
    )

    assert [[1, "ValueError: boom"], "ValueError: boom"] == chords.apply_async().get(timeout=10)


def test_results_of_the_header_themselves_still_raise(with_fix):
    result = canvas(with_fix.tasks).apply_async()
    result.get(timeout=10)

    with pytest.raises(ValueError, match="boom"):
        result.parent.join(timeout=10)
