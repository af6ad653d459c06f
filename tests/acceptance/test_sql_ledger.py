"""Many counted chords at once, and the places where their tables may be."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import uuid

import pytest
import sqlalchemy as sa
from celery import Celery, chord
from click.testing import CliRunner

from chordguard.__main__ import FINE, UNUSABLE, main
from chordguard.ledger.model import Part
from chordguard.ledger.sql import DatabaseLedger
from chordguard.ledger.tables import DEFAULT_NAMES
from tests.app_factory import make_app
from tests.harness import Cluster, Stack, running_worker, wait_until

#: A body that runs in time was not started by the safety net.
NO_POLLS = {"chord_unlock_first_delay": 300}
#: Words in a worker's log that tell of trouble with the database.
TROUBLE = ("deadlock", "failed operation", "error", "could not", "cannot")

LOOK = re.compile(r"Task celery\.chord_unlock\[[\w-]+\] (?:retry|succeeded)")

#: The tables of live chords; how others ended stays in the last one.
TABLES = sorted(name for key, name in DEFAULT_NAMES.items() if key != "chord_end")


def execute(url, *statements):
    """Execute the statements and return the first column of what the last one selects."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            result = connection.execute(sa.text(statement))
        found = result.scalars().all() if result.returns_rows else None
    engine.dispose()
    return found


def tables(url, schema=None):
    engine = sa.create_engine(url)
    names = sa.inspect(engine).get_table_names(schema=schema)
    engine.dispose()
    return names


def check_crowd(cluster, record, count=60, size=10):
    """Run many chords at once and check that each body ran once, with all results."""
    t = cluster.tasks
    headers = [list(range(size * number, size * (number + 1))) for number in range(count)]

    for header in headers:
        chord([t.echo.s(x) for x in header], t.collect.s(record=record.path)).apply_async()

    wait_until(lambda: record.count("body") >= count, 90, f"{count} bodies")
    wait_until(cluster.is_idle, 30, "idle worker")
    assert sorted(f"body {header}" for header in headers) == sorted(record.lines())
    for table in TABLES:
        query = f"SELECT count(*) FROM {table}"
        wait_until(lambda: [0] == execute(cluster.stack.database_url, query), what="no rows")  # noqa: B023
    log = cluster.worker.log_text().lower().splitlines()
    assert [] == [line for line in log if any(word in line for word in TROUBLE)]


@contextlib.contextmanager
def delivered_twice(cluster, name="tests.echo"):
    """Have each message of the task `name` published twice."""
    amqp = cluster.app.amqp
    send = amqp.send_task_message

    def send_twice(producer, task, *args, **kwargs):
        if task == name:
            send(producer, task, *args, **kwargs)
        return send(producer, task, *args, **kwargs)

    amqp.__dict__["send_task_message"] = send_twice
    try:
        yield
    finally:
        amqp.__dict__["send_task_message"] = send


@pytest.mark.cluster(settings=NO_POLLS, concurrency=4)
@pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql", "mysql"])
class TestCrowd:
    def test_each_body_runs_once(self, cluster, record):
        check_crowd(cluster, record)

    def test_each_body_runs_once_though_members_run_twice(self, cluster, record):
        with delivered_twice(cluster):
            check_crowd(cluster, record, count=30)


@pytest.mark.parametrize(
    ("kind", "level"), [("postgresql", "REPEATABLE READ"), ("mysql", "READ COMMITTED")]
)
def test_engine_may_have_an_isolation_level_of_its_own(clusters, record, kind, level):
    options = {"database_engine_options": {"isolation_level": level}}

    check_crowd(clusters(kind, settings={**NO_POLLS, **options}, concurrency=4), record, count=20)


@pytest.mark.parametrize(
    ("pool", "kind"),
    [("threads", "postgresql"), ("solo", "sqlite")]
    + [("gevent", "postgresql")] * bool(importlib.util.find_spec("gevent")),
)
def test_worker_may_have_any_pool(clusters, record, pool, kind):
    # The safety nets fill the prefetch count, which such a worker raises every other second.
    settings = {**NO_POLLS, "worker_prefetch_multiplier": 0}
    cluster = clusters(kind, settings=settings, pool=pool, concurrency=4)

    check_crowd(cluster, record, count=15, size=5)


@contextlib.contextmanager
def worker_on(stack, settings=None, **options):
    """Run a worker, and a producer that does not count chords itself."""
    config = stack.config({**NO_POLLS, **(settings or {})})
    with running_worker(config, concurrency=1, **options) as worker:
        app = make_app(config, patched=False)
        app.set_current()
        yield Cluster(stack, app, worker, config)


def run_chord(cluster):
    """Run a chord that is started in the worker; tell whether it was counted."""
    assert [1, 2] == cluster.run(cluster.tasks.replace_with_chord.s([1, 2]))
    return not LOOK.search(cluster.worker.log_text())


@pytest.fixture
def stack(servers, require):
    """A PostgreSQL database with Celery's tables."""
    require("redis", "postgresql")
    with contextlib.closing(Stack(servers, "postgresql", "redis")) as stack:
        yield stack


@pytest.fixture
def role(stack):
    """A role that may use Celery's tables and create none; the app connects as it."""
    role, owner = f"chordguard_{uuid.uuid4().hex[:12]}", stack.database_url
    execute(
        owner,
        f"CREATE ROLE {role} LOGIN PASSWORD '{role}'",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        grant(role),
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    url = sa.engine.make_url(owner).set(username=role, password=role)
    stack.result_url = f"db+{url.render_as_string(hide_password=False)}"
    yield role
    execute(owner, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def grant(role):
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"


def ddl(*arguments):
    return CliRunner().invoke(main, ["ddl", *arguments])


def statements(dialect):
    done = ddl("--dialect", dialect)
    assert FINE == done.exit_code, done.output
    return [statement for statement in done.stdout.split(";") if statement.strip()]


class TestTables:
    def test_have_the_names_and_schemas_of_the_app(self, stack):
        execute(stack.database_url, "CREATE SCHEMA own")
        settings = {
            "database_table_names": {
                "chord": "my_chord",
                "chord_member": "my_member",
                "chord_counter": "my_counter",
            },
            "database_table_schemas": {"chord": "own", "chord_member": "own"},
        }

        with worker_on(stack, settings) as cluster:
            assert run_chord(cluster)

        assert ["chordguard_chord_end", "my_chord", "my_counter", "my_member"] == sorted(
            tables(stack.database_url, "own")
        )
        assert not set(TABLES) & set(tables(stack.database_url))

    def test_that_may_not_be_created_are_asked_for_once_and_chords_are_polled(self, stack, role):
        with worker_on(stack) as cluster:
            assert not run_chord(cluster)
            log = cluster.worker.log_text()

        assert 1 == log.count("`python -m chordguard ddl --dialect postgresql`")
        assert not set(TABLES) & set(tables(stack.database_url))

    def test_that_may_not_be_used_are_warned_of_and_chords_are_polled(self, stack, role):
        execute(stack.database_url, *statements("postgresql"))

        with worker_on(stack) as cluster:
            assert not run_chord(cluster)
            assert "permission denied for table chordguard_chord" in cluster.worker.log_text()

    def test_that_the_owner_created_are_used(self, stack, role):
        execute(stack.database_url, *statements("postgresql"), grant(role))

        with worker_on(stack) as cluster:
            assert run_chord(cluster)
            assert "permission denied" not in cluster.worker.log_text()


@pytest.fixture
def empty_database(servers, require, tmp_path):
    """Return a function that creates a database without tables."""
    with contextlib.ExitStack() as closing:

        def create(kind):
            require(*({kind} - {"sqlite"}))
            if kind == "sqlite":
                return f"sqlite:///{tmp_path / 'empty.sqlite'}"
            server = servers.get(kind)
            url = server.kind.create_database(server)
            closing.callback(server.kind.drop_database, server, url)
            return url

        yield create


PROJECT = """
from celery import Celery
app = Celery("proj", broker="memory://", backend="db+sqlite://")
app.conf.database_table_names = {"chord": "my_chord"}
app.conf.database_table_schemas = {"chord": "own", "chord_member": "other"}
"""


class TestCommand:
    @pytest.mark.parametrize(
        ("dialect", "kind"),
        [
            ("sqlite", "sqlite"),
            ("postgresql", "postgresql"),
            ("mysql", "mysql"),
            ("mariadb", "mysql"),
        ],
    )
    def test_prints_what_creates_the_tables(self, empty_database, dialect, kind):
        url = empty_database(kind)

        execute(url, *statements(dialect))

        assert sorted(DEFAULT_NAMES.values()) == sorted(tables(url))
        app = Celery("ddl", broker="memory://", backend=f"db+{url}", set_as_current=False)
        ledger = DatabaseLedger(app.backend)
        ledger.open("group", ["a", "b"], b"body", 0.0, None)
        payload = b"\xff" * 100_000
        claims = [ledger.count("group", Part(task_id, payload)) for task_id in "ab"]
        assert ["a", "b"] == claims[1].header
        assert {"a": payload, "b": payload} == ledger.payloads("group")

    def test_uses_the_names_and_schemas_of_an_app(self, tmp_path, monkeypatch):
        name = f"project_{uuid.uuid4().hex[:8]}"
        (tmp_path / f"{name}.py").write_text(PROJECT)
        monkeypatch.syspath_prepend(tmp_path)

        done = ddl("--dialect", "postgresql", "-A", name)

        assert FINE == done.exit_code, done.output
        assert "CREATE TABLE own.my_chord (" in done.stdout
        assert "CREATE TABLE other.chordguard_chord_member (" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--dialect", "oracle"], "'oracle' is not one of"),
            ([], "Missing option '--dialect'"),
            (["--dialect", "sqlite", "-A", "no_such_module"], "no_such_module"),
        ],
    )
    def test_complains_of_what_it_does_not_understand(self, arguments, complaint):
        done = ddl(*arguments)

        assert UNUSABLE == done.exit_code
        assert "" == done.stdout
        assert complaint in done.stderr
