from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chords.troubled import Producer
from tests.harness import wait_until

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.parametrize("backend_kind", ["redis"])


def subscribers(producer: Producer) -> int:
    """Return how many connections Redis tells of the result that was collected."""
    channel = producer.backend.get_key_for_task(producer.collected_id)
    ((_, number),) = producer.backend.client.pubsub_numsub(channel)
    return number


def test_chord_is_never_started(without_fix):
    assert Producer(without_fix).result is None


def test_chord_is_started(with_fix):
    assert with_fix.run(Producer(with_fix).result) == [1, 2]


def test_what_was_collected_is_not_announced_any_more(with_fix):
    producer = Producer(with_fix)

    wait_until(lambda: subscribers(producer) == 0, what="unsubscription")
