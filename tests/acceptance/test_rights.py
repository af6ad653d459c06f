"""The ledger cannot be written, or not read: chords end as by Celery alone, and one warning says why."""

from __future__ import annotations

import contextlib
import uuid

import pytest
import sqlalchemy as sa
from celery import chord

from chordguard.ledger.database import Tables
from tests.app_factory import make_app
from tests.harness import Cluster, Stack, running_worker, wait_until

#: The safety net looks early; the watchdog looks often, to be seen to keep quiet.
SETTINGS = {"chord_unlock_first_delay": 2, "chord_watchdog_interval": 0.3}

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
LEDGER = ("chordguard_chord", "chordguard_chord_member")

#: Lines that a worker with three processes may log, tracebacks and all, however many chords run.
LOG_LINES = 600


class Limited:
    """A database in which the app's user has certain rights on the ledger's tables."""

    def __init__(self, stack, kind):
        self.stack, self.kind = stack, kind
        self.owner = sa.create_engine(stack.database_url)
        self.user = f"cg_{uuid.uuid4().hex[:12]}"
        tables = [*Tables.of(None).ddl(kind)]
        if kind == "postgresql":
            self.name = self.user
            self.execute(
                *tables,
                f"CREATE ROLE {self.name} LOGIN PASSWORD '{self.user}'",
                f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {self.name}",
            )
        else:
            self.name = f"'{self.user}'@'%'"
            self.execute(*tables, f"CREATE USER {self.name} IDENTIFIED BY '{self.user}'")
        self.grant(*RIGHTS, tables=("celery_taskmeta", "celery_tasksetmeta"))
        if kind == "mysql":
            # MariaDB has sequences, MySQL has none.
            sequences = "SELECT table_name FROM information_schema.tables WHERE table_schema = "
            sequences += "database() AND table_type = 'SEQUENCE'"
            self.grant("SELECT", "INSERT", tables=self.execute(sequences))
        url = sa.engine.make_url(stack.database_url).set(username=self.user, password=self.user)
        self.url = url.render_as_string(hide_password=False)

    def execute(self, *statements):
        with self.owner.begin() as connection:
            for statement in statements:
                found = connection.execute(sa.text(statement))
            return found.scalars().all() if found.returns_rows else None

    def grant(self, *rights, tables=LEDGER):
        for table in tables:
            self.execute(f"GRANT {', '.join(rights)} ON {table} TO {self.name}")

    def revoke(self, *rights, tables=LEDGER):
        for table in tables:
            self.execute(f"REVOKE {', '.join(rights)} ON {table} FROM {self.name}")

    def close(self):
        if self.kind == "postgresql":
            self.execute(f"DROP OWNED BY {self.name}", f"DROP ROLE {self.name}")
        else:
            self.execute(f"DROP USER {self.name}")
        self.owner.dispose()


@pytest.fixture(params=["postgresql", "mysql"])
def limited(request, servers, require):
    kind = request.param
    require("redis", kind)
    with contextlib.closing(Stack(servers, kind, "redis")) as stack:
        limited = Limited(stack, kind)
        yield limited
        limited.close()


@contextlib.contextmanager
def cluster_of(limited, settings=None):
    """Run a worker and a producer as the user with few rights."""
    stack = limited.stack
    stack.result_url = f"db+{limited.url}"
    config = stack.config({**SETTINGS, **(settings or {})})
    with running_worker(config, loglevel="WARNING") as worker:
        app = make_app(config, patched=True)
        app.set_current()
        try:
            yield Cluster(stack, app, worker, config)
        finally:
            app.close()


def run_chords(cluster, record, count=10):
    """Run chords to their end, and check that each body ran once."""
    t = cluster.tasks
    headers = [[uuid.uuid4().hex, number] for number in range(count)]
    results = [
        chord([t.echo.s(x) for x in header], t.collect.s(record=record.path)).apply_async()
        for header in headers
    ]
    for header, result in zip(headers, results, strict=True):
        assert header == cluster.run(result, 30)
    for header in headers:
        assert 1 == record.lines().count(f"body {header}")


def complaints(worker):
    return [line for line in worker.log_text().splitlines() if "Chords are polled" in line]


def check_log(worker, *named):
    lines = worker.log_text().splitlines()
    told = complaints(worker)
    assert 1 <= len(told) <= 3, told
    for line in told:
        assert all(name in line for name in named), line
    print(f"LINES {len(lines)} told {len(told)}: {told[0]}")
    assert len(lines) < LOG_LINES


@pytest.mark.parametrize("missing", RIGHTS)
def test_right_that_was_forgotten(limited, record, missing):
    limited.grant(*(right for right in RIGHTS if right != missing))

    with cluster_of(limited) as cluster:
        run_chords(cluster, record)

        check_log(cluster.worker, f"{missing} chordguard_chord")


@pytest.mark.parametrize("missing", RIGHTS)
def test_right_that_is_taken_away_while_chords_run(limited, record, gate, missing):
    limited.grant(*RIGHTS)

    with cluster_of(limited) as cluster:
        t = cluster.tasks
        run_chords(cluster, record, 2)
        started = [
            chord(
                [t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s(record=record.path)
            ).apply_async()
            for _ in range(2)
        ]
        wait_until(
            lambda: sum(limited.execute("SELECT returned FROM chordguard_chord")) == 2,
            what="the first members",
        )
        limited.revoke(missing)
        gate.open()
        for result in started:
            assert [1, 2] == cluster.run(result, 30)
        assert 2 == record.lines().count("body [1, 2]")
        run_chords(cluster, record, 20)

        check_log(cluster.worker, f"{missing} chordguard_chord")
