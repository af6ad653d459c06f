"""A result store that loses all that it knows, beside a ledger with a store of its own."""

from __future__ import annotations

import ast
import time

import pytest
import redis
from celery import chord

from chordguard.ledger.access import ledger_of
from tests import tasks
from tests.app_factory import make_app
from tests.harness import UNLOCK, Stack, running_worker, wait_until
from tests.servers import KINDS

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

CHORDS = 200
MEMBERS = 4


@pytest.fixture
def results(require):
    """A Redis for results alone, which starts empty when it was killed."""
    require("redis", "postgresql")
    # Not `servers.start`, whose server would be the broker, too.
    server = KINDS["redis"].start()
    yield server
    server.stop()


def flush(server):
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def restart(server):
    server.restart(away=2)


@pytest.mark.parametrize("lose", [flush, restart])
def test_every_chord_ends_with_all_values(servers, results, lose, record):
    stack = Stack(servers, "redis+postgresql", "redis")
    stack.result_url = results.url
    config = stack.config({"chord_watchdog_interval": 1, "chord_unlock_first_delay": 5})
    try:
        with running_worker(config, loglevel="INFO") as worker:
            app = make_app(config, patched=True)
            t = tasks.named(app)
            ledger = ledger_of(app.backend)
            expected = [
                [f"{number}-{index}" for index in range(MEMBERS)] for number in range(CHORDS)
            ]
            for values in expected:
                header = [t.slow.s(value, 0.01) for value in values]
                body = t.collect.s(record=record.path)
                chord(header, body).apply_async(add_to_parent=False)
            wait_until(lambda: record.count("body") >= CHORDS // 4, timeout=120, what="bodies")
            lose(results)
            assert record.count("body") < CHORDS
            wait_until(lambda: record.count("body") >= CHORDS, timeout=120, what="all bodies")
            wait_until(lambda: [] == ledger.group_ids(), what="no live chord")
            # A body that is published twice would run now.
            time.sleep(1)
            bodies = [ast.literal_eval(line.partition(" ")[2]) for line in record.lines()]
            assert sorted(expected) == sorted(bodies)
            assert UNLOCK not in worker.log_text()
            app.close()
    finally:
        stack.close()
