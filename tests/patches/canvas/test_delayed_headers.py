from __future__ import annotations

import pytest

from tests.chords.troubled import DELAY, start_delayed

pytestmark = pytest.mark.cluster(settings={"chord_ledger": False})

on_both = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
WAYS = pytest.mark.parametrize("way", ["countdown", "eta", "set"])


@on_both
def test_countdown_does_not_delay_the_header(without_fix):
    _, etas = start_delayed(without_fix.tasks, "countdown")

    assert etas["tests.echo"] is None


@on_both
@WAYS
def test_header_is_delayed_and_nothing_else(with_fix, way):
    result, etas = start_delayed(with_fix.tasks, way)

    assert DELAY - 1 < etas.pop("tests.echo") <= DELAY
    assert [] == [eta for eta in etas.values() if eta > 1.1]
    assert [[1, 2], None] == with_fix.run(result)
