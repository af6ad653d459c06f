"""A ledger of each kind; those on a server share a database, or have keys of their own."""

from __future__ import annotations

import contextlib

import pytest
from celery.utils import uuid

from chordguard.ledger.redis import RedisLedger
from tests.conftest import needed_by
from tests.django import project
from tests.harness import create_result_tables, delete_keys
from tests.unit.ledger.chords import OWN, SQL, app_on, ledger_on, ledger_on_django, on, start


@pytest.fixture(scope="package")
def new_database(servers, tmp_path_factory):
    """Return a function that creates an empty database and returns its URL."""
    with contextlib.ExitStack() as closing:

        def create(kind):
            kind = project.BACKENDS.get(kind, kind)
            if kind == "sqlite":
                return f"sqlite:///{tmp_path_factory.mktemp('database') / 'results.sqlite'}"
            server = servers.get(kind)
            url = server.kind.create_database(server)
            closing.callback(server.kind.drop_database, server, url)
            # PyMySQL reads all certificates for each connection.
            return f"{url}?ssl_disabled=true" if kind == "mysql" else url

        yield create


@pytest.fixture(scope="package")
def shared(new_database):
    """Return a function that returns the ledger that the tests on a database share."""
    ledgers, projects = {}, {}

    def get(kind):
        if kind not in ledgers:
            ledgers[kind] = ledger_on_new(kind)
        if kind in project.BACKENDS:
            project.use(projects[kind])
        return ledgers[kind]

    def ledger_on_new(kind):
        url = new_database(kind)
        if kind not in project.BACKENDS:
            create_result_tables(url)
            return ledger_on(url)
        database = project.database_of(project.BACKENDS[kind], url.partition("?")[0])
        projects[kind] = {"databases": {"default": database}, "apps": list(project.APPS)}
        project.use(projects[kind])
        project.migrate()
        return ledger_on_django()

    return get


@pytest.fixture
def redis_backend(servers):
    """Return a function that makes a result backend on the keys of this test, and of no other."""
    url, name = servers.get("redis").url, f"cg-{uuid()}"
    backends = []

    def make(suffix="", **settings):
        backends.append(app_on(url, f"{name}{suffix}", **settings).backend)
        return backends[-1]

    yield make
    delete_keys(url, f"{name}*")
    for backend in backends:
        backend.client.connection_pool.disconnect()


@pytest.fixture
def redis_ledger(redis_backend):
    """Return a function that makes a ledger on the keys of this test."""
    return lambda **settings: RedisLedger(redis_backend(**settings))


@pytest.fixture(params=on("redis", *SQL, *OWN, *project.BACKENDS))
def kind(request):
    return request.param


@pytest.fixture
def ledger(request, kind, require):
    store, _, own = kind.partition(" ")
    require(*needed_by(store), *(["redis"] if own else []))
    if store == "redis":
        ledger = request.getfixturevalue("redis_ledger")()
    else:
        ledger = request.getfixturevalue("shared")(store)
        assert ledger.is_usable()
    if own:
        results = request.getfixturevalue("redis_backend")("-results")
        ledger = type(ledger)(ledger.backend, results)
    return ledger


@pytest.fixture
def group_id(ledger):
    """The id of a chord of three."""
    group_id = start(ledger, ["a", ["b"], "c"])
    yield group_id
    ledger.close(group_id)
