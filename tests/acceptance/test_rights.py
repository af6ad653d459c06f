"""The server refuses what the ledger does: chords end as by Celery alone, one warning says why."""

from __future__ import annotations

import contextlib
import uuid
from types import SimpleNamespace

import pytest
import redis
import sqlalchemy as sa
from celery import VERSION, Celery, chord

from chordguard import install_patches
from chordguard.errors import CannotTell
from chordguard.ledger.tables import DEFAULT_NAMES, Tables
from chordguard.monitoring.doctor import ask_backend
from tests.app_factory import make_app
from tests.harness import Cluster, Stack, running_worker, wait_until
from tests.servers import KINDS

#: The safety net looks early; the watchdog looks often, to be seen to keep quiet.
SETTINGS = {"chord_unlock_first_delay": 2, "chord_watchdog_interval": 0.3}

pytestmark = pytest.mark.alone

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
#: The others are missed in the same way.
EACH_RIGHT = [
    right if right in ("INSERT", "UPDATE") else pytest.param(right, marks=pytest.mark.nightly)
    for right in RIGHTS
]
LEDGER = tuple(DEFAULT_NAMES.values())

#: Of a worker.
PROCESSES = 3
#: What it may log beside, its banner included, however many chords run.
LOG_LINES = 40


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
        self.url = f"db+{url.render_as_string(hide_password=False)}"

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
    stack.result_url = limited.url
    config = stack.config({**SETTINGS, **(settings or {})})
    with running_worker(config, loglevel="WARNING") as worker:
        app = make_app(config, patched=True)
        app.set_current()
        try:
            yield Cluster(stack, app, worker, config)
        finally:
            app.close()
            # Results that are still waited for would ask a server that is stopped.
            app.backend.remove_pending_result = lambda result: result


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


def check_log(worker, caplog, *named):
    """Check that each process said once what is refused, and that nothing else fills the log."""
    lines = worker.log_text().splitlines()
    told = [line for line in lines if "the server refuses" in line]
    own = [line for line in caplog.messages if "the server refuses" in line]
    assert 1 <= len(told) + len(own)
    assert len(told) <= PROCESSES, told
    assert len(own) <= 1, own
    for line in told + own:
        assert all(name in line for name in named), line
    assert len(lines) - len(told) < LOG_LINES, "\n".join(lines)


@pytest.mark.parametrize("missing", EACH_RIGHT)
def test_right_that_was_forgotten(limited, record, caplog, missing):
    limited.grant(*(right for right in RIGHTS if right != missing))

    with cluster_of(limited) as cluster:
        run_chords(cluster, record)

        check_log(cluster.worker, caplog, f"{missing} chordguard_chord")


@pytest.mark.parametrize("missing", EACH_RIGHT)
def test_right_that_is_taken_away_while_chords_run(limited, record, gate, caplog, missing):
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

        check_log(cluster.worker, caplog, f"{missing} chordguard_chord")


@pytest.mark.parametrize("missing", ["UPDATE", "INSERT"])
def test_result_that_only_the_ledger_would_have_kept_is_stored(limited, record, gate, missing):
    limited.grant(*RIGHTS)

    with cluster_of(limited) as cluster:
        t = cluster.tasks
        ignored = [t.wait_for_file.s(gate.path, x).set(ignore_result=True) for x in range(2)]
        result = chord(ignored, t.collect.s(record=record.path)).apply_async()
        limited.revoke(missing)
        gate.open()

        assert [0, 1] == cluster.run(result, 30)
        assert ["body [0, 1]"] == record.lines()


class LimitedRedis:
    """A Redis server of our own, with a user that may do what `rules` say."""

    def __init__(self, stack, server):
        self.stack = stack
        self.client = redis.Redis.from_url(server.url)
        self.url = server.url.replace("://", "://limited:secret@")

    def limit(self, *rules):
        self.client.execute_command(
            "ACL", "SETUSER", "limited", "reset", "on", ">secret", "&*", "~*", "+@all", *rules
        )

    def refuse_writes(self, how):
        if how == "OOM":
            self.client.config_set("maxmemory", 1)
        else:
            self.client.replicaof("127.0.0.1", 1)

    def accept_writes(self):
        self.client.config_set("maxmemory", 0)
        self.client.replicaof("NO", "ONE")


@pytest.fixture
def limited_redis(servers, require):
    require("redis")
    server = KINDS["redis"].start()
    try:
        with contextlib.closing(Stack(servers, "redis", "redis")) as stack:
            limited = LimitedRedis(stack, server)
            stack.result_url = server.url
            yield limited
            stack.result_url = server.url
            limited.accept_writes()
    finally:
        server.stop()


#: Keys that Celery's own counting needs, and not the index and the records of the ledger.
CELERYS_KEYS = (
    "resetkeys",
    *("~*celery-task-meta-*", "~*.j", "~*.t", "~*.s", "~*.d", "~*.c"),
    "~*celery-taskset-meta-*-????????????",
)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (("-hset",), "HSET"),
        # Servers have different words for the rest of it.
        (CELERYS_KEYS, "permissions to access"),
        pytest.param(
            ("-eval", "-evalsha"),
            "evalsha",
            marks=pytest.mark.skipif(VERSION >= (5, 7), reason="Celery itself counts by scripts"),
        ),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_user_of_redis_whose_rights_do_not_suffice(
    limited_redis, record, caplog, rules, named, is_late
):
    limited_redis.limit(*(() if is_late else rules))

    with cluster_of(limited_redis) as cluster:
        if is_late:
            run_chords(cluster, record, 2)
            limited_redis.limit(*rules)
        run_chords(cluster, record)

        check_log(cluster.worker, caplog, named)


@pytest.mark.parametrize("how", ["OOM", "READONLY"])
def test_redis_that_refused_writes_for_a_while(limited_redis, record, gate, how):
    """Celery alone loses results then; the chords that follow end well, and the log stays short."""
    limited_redis.limit()

    with cluster_of(limited_redis) as cluster:
        t = cluster.tasks
        waiting = [t.wait_for_file.s(gate.path, number) for number in range(2)]
        chord(waiting, t.collect.s()).apply_async()
        limited_redis.refuse_writes(how)
        gate.open()
        for number in range(4):
            t.echo.apply_async((number, record.path))
        wait_until(lambda: record.count("echo") >= 4, 20, what="the tasks")
        limited_redis.accept_writes()
        run_chords(cluster, record)

        log = cluster.worker.log_text()
        assert log.count("the server refuses") <= PROCESSES
        assert log.count("(said once)") <= PROCESSES


@pytest.fixture
def sqlite(servers, require):
    """A SQLite database in which a trigger refuses to count."""
    require("redis")
    with contextlib.closing(Stack(servers, "sqlite", "redis")) as stack:
        yield SimpleNamespace(stack=stack, url=stack.result_url)


@pytest.mark.parametrize("is_late", [False, True])
def test_trigger_that_refuses_to_count(sqlite, record, gate, caplog, is_late):
    engine = sa.create_engine(sqlite.stack.database_url)

    def refuse():
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "CREATE TRIGGER refused BEFORE UPDATE ON chordguard_chord "
                    "BEGIN SELECT RAISE(ABORT, 'not today'); END"
                )
            )

    if not is_late:
        with engine.begin() as connection:
            for statement in Tables.of(None).ddl("sqlite"):
                connection.execute(sa.text(statement))
        refuse()
    with cluster_of(sqlite) as cluster:
        t = cluster.tasks
        if is_late:
            waiting = [t.wait_for_file.s(gate.path, number) for number in range(2)]
            late = chord(waiting, t.collect.s(record=record.path)).apply_async()
            refuse()
            gate.open()
            assert [0, 1] == cluster.run(late, 30)
            assert ["body [0, 1]"] == record.lines()
        run_chords(cluster, record)

        check_log(cluster.worker, caplog, "not today")
    engine.dispose()


@pytest.mark.parametrize("limited", ["postgresql"], indirect=True)
def test_fleet_in_which_some_may_count(limited, record):
    """Workers of the owner and of the user without rights end chords together."""
    limited.grant("SELECT", "INSERT", "DELETE")
    owner = f"db+{limited.stack.database_url}"

    with cluster_of(limited) as cluster:
        config = {**cluster.config, "settings": {**cluster.config["settings"]}}
        config["settings"]["result_backend"] = owner
        with running_worker(config, loglevel="WARNING"):
            app = make_app(config, patched=True)
            app.set_current()
            # Started by a process that may count.
            fleet = Cluster(limited.stack, app, cluster.worker, config)
            run_chords(fleet, record, 40)
            run_chords(cluster, record, 10)
            wait_until(
                lambda: limited.execute("SELECT count(*) FROM chordguard_chord") == [0],
                30,
                what="an empty ledger",
            )
            app.close()
    bodies = record.lines()
    assert 50 == len(bodies) == len(set(bodies))


def app_on(url):
    app = Celery("doctor", broker="memory://", backend=url, set_as_current=False)
    install_patches(app)
    return app


class TestDoctor:
    """The doctor that may connect (``doctor --connect``)."""

    @pytest.mark.parametrize("missing", EACH_RIGHT)
    def test_names_the_rights_that_are_missing(self, limited, missing):
        limited.grant(*(right for right in RIGHTS if right != missing))

        found = ask_backend(app_on(limited.url))

        # A member stays as it is until it is removed.
        never_changed = ["chordguard_chord_member"] if missing == "UPDATE" else []
        tables = [table for table in LEDGER if table not in never_changed]
        assert [f"{missing} {table}" for table in tables] == [each.subject for each in found]

    def test_finds_nothing_where_none_is_missing(self, limited):
        limited.grant(*RIGHTS)

        assert [] == ask_backend(app_on(limited.url))
        assert [0] == limited.execute("SELECT count(*) FROM chordguard_chord")

    def test_finds_a_database_that_is_read_only(self, limited):
        if limited.kind != "postgresql":
            pytest.skip("read-only for the whole server there")
        limited.grant(*RIGHTS)
        limited.execute(f"ALTER ROLE {limited.name} SET default_transaction_read_only = on")

        found = ask_backend(app_on(limited.url))

        assert {"INSERT", "UPDATE", "DELETE"} == {each.subject.split()[0] for each in found}
        assert "read-only" in found[0].danger

    def test_creates_no_tables(self, sqlite):
        found = ask_backend(app_on(sqlite.url))

        assert ["the ledger"] == [each.subject for each in found]
        engine = sa.create_engine(sqlite.stack.database_url)
        assert not {*LEDGER} & {*sa.inspect(engine).get_table_names()}
        engine.dispose()

    def test_names_what_a_user_of_redis_may_not_do(self, limited_redis):
        limited_redis.limit("-hset")
        (found,) = ask_backend(app_on(limited_redis.url))
        assert found.subject.startswith("HSET ")

        limited_redis.limit()
        assert [] == ask_backend(app_on(limited_redis.url))
        assert 0 == limited_redis.client.dbsize()

    def test_says_that_a_server_does_not_answer(self):
        with pytest.raises(CannotTell, match="cannot be read"):
            ask_backend(app_on("redis://localhost:1/0"))
