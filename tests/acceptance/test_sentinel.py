"""Chords on a Redis that is found through Sentinel, before and after it fails over."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

import pytest
import redis
from celery import chord

from chordguard import diagnose, tolerant
from chordguard.ledger.access import ledger_of
from chordguard.ledger.redis import RedisLedger
from tests import tasks
from tests.app_factory import make_app
from tests.harness import Stack, is_ready, running_worker, wait_until
from tests.servers import Redis, ServerAbsent, Spawned, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MASTER = "chords"
SETTINGS = {"chord_watchdog_interval": 0.3, "chord_timeout": 60}


class WatchedRedis(Redis):
    """A master, a replica of it, and a Sentinel that makes that the master when it has to."""

    def launch(self, program: Path, folder: Path, user: str | None, port: int) -> list[Spawned]:
        (master,) = super().launch(program, folder, user, port)
        self.replica, self.sentinel = free_port(), free_port()
        configs = {
            "replica": f"port {self.replica}\nreplicaof 127.0.0.1 {port}\n"
            "repl-diskless-sync-delay 0\n",
            "sentinel": f"port {self.sentinel}\nsentinel monitor {MASTER} 127.0.0.1 {port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n",
        }
        self.master = master
        spawned = [master]
        for name, config in configs.items():
            place = folder / name
            place.mkdir()
            path = place / "server.conf"
            path.write_text(f'bind 127.0.0.1\ndir {place}\nsave ""\n{config}')
            if user:
                shutil.chown(place, user)
                shutil.chown(path, user)
            options = ["--sentinel"] if name == "sentinel" else []
            spawned.append(Spawned([program, path, *options], place, user))
        return spawned


@pytest.fixture(scope="module")
def watched(servers) -> Iterator[WatchedRedis]:
    kind = WatchedRedis()
    try:
        server = kind.start()
    except ServerAbsent as absent:
        pytest.skip(f"no Redis of our own: {absent}")
    with contextlib.closing(redis.Redis(port=kind.sentinel)) as sentinel:

        def knows_replica() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(sentinel.execute_command("SENTINEL", "REPLICAS", MASTER))
            return False

        wait_until(knows_replica, timeout=30, what="a replica that Sentinel knows")
    yield kind
    server.stop()


def is_master(client: redis.Redis) -> bool:
    # Redis closes the connections of its clients when it becomes one.
    with contextlib.suppress(redis.ConnectionError):
        return client.info("replication")["role"] == "master"
    return False


def test_chords_end_before_and_after_a_failover(servers, require, watched):
    require("redis")
    with contextlib.closing(Stack(servers, "redis", "redis")) as stack:
        config = stack.config(SETTINGS)
        config["settings"] |= {
            "result_backend": f"sentinel://127.0.0.1:{watched.sentinel}/0",
            "result_backend_transport_options": {"master_name": MASTER},
            "result_backend_always_retry": True,
        }
        app = make_app(config, patched=True)
        t = tasks.named(app)
        assert isinstance(ledger_of(app.backend), RedisLedger)
        with running_worker(config):
            body = tolerant(t.collect.s(), error_format="string")
            before = chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], body).apply_async()
            wait_until(lambda: is_ready(before), timeout=30, what="a result")
            assert [1, "ValueError: boom", 3] == before.result
            assert "unknown" == diagnose(app, before.parent.id).kind

            watched.master.kill()
            with contextlib.closing(redis.Redis(port=watched.replica)) as replica:
                wait_until(lambda: is_master(replica), timeout=30, what="another master")
            after = chord([t.echo.s(number) for number in range(5)], t.collect.s()).apply_async()
            wait_until(lambda: is_ready(after), timeout=60, what="a result")
            assert [0, 1, 2, 3, 4] == after.result
