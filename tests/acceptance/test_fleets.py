"""Fleets of this Celery in which not all have the patches; see `tests.fleets` for all of them."""

from __future__ import annotations

import pytest

from tests import fleets

#: What stock alone does not end right, on Redis or on SQL (A2, B1, B10).
NOT_ALONE = {"generator", "group in the header", "chord in the header fails"}


@pytest.mark.parametrize("backend", ["redis", "postgresql"])
@pytest.mark.parametrize("producer", ["patched", "stock"])
def test_chords_end_as_they_would_without_patches(servers, require, backend, producer):
    require("redis", *({backend} - {"redis"}))
    (fleet,) = (
        fleet
        for fleet in fleets.fleets()
        if len(fleet.workers) == 2 and fleet.producer.patched == (producer == "patched")
    )

    ended = fleets.run(servers, backend, fleet)

    alone = {each: "hangs" if each in NOT_ALONE else "right" for each in ended}
    assert [] == fleets.mistakes(fleet, ended, alone), ended
