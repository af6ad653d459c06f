"""What cannot be read is said, soon, and never counts as well."""

from __future__ import annotations

import time

import pytest

from tests.app_factory import make_app
from tests.cli.calls import BOTH, CLUSTER, call
from tests.servers import free_port

pytestmark = CLUSTER

#: Seconds after which there has to be an answer.
DEADLINE = 5.0

COMMANDS = (["check"], ["status"], ["list"], ["inspect", "any"], ["repair", "--auto", "--yes"])

SECRET = "not-for-anybody"


def app_with(cluster, **settings):
    config = {**cluster.config, "settings": {**cluster.config["settings"], **settings}}
    return make_app(config, patched=True)


def assert_cannot_tell(app, command, *reasons):
    started = time.monotonic()
    found = call(app, *command, "--json")
    seconds = time.monotonic() - started

    assert (69, "unknown") == (found.code, found.data["status"])
    for reason in reasons:
        assert reason in found.data["problem"]
        assert reason in found.stderr
    assert SECRET not in found.stdout + found.stderr
    assert seconds < DEADLINE


@pytest.fixture
def nowhere():
    """An address at which nobody answers."""
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize("command", COMMANDS[:2], ids=" ".join)
def test_no_worker(cluster, command):
    app = app_with(cluster, control_exchange=f"{cluster.stack.name}-nobody")

    assert_cannot_tell(app, command, "no worker answered")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_broker_down(cluster, nowhere, scheme):
    app = app_with(cluster, broker_url=f"{scheme}://user:{SECRET}@{nowhere}//")

    assert_cannot_tell(app, ["check"], "the broker ", nowhere)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_redis_as_backend_down(cluster, nowhere, command):
    app = app_with(cluster, result_backend=backend_at(cluster, nowhere, SECRET))

    assert_cannot_tell(app, command, "the result backend ", nowhere)


@pytest.mark.parametrize("backend_kind", ["postgresql"])
def test_database_down(cluster, nowhere):
    app = app_with(cluster, result_backend=backend_at(cluster, nowhere, SECRET))

    assert_cannot_tell(app, ["check"], "the result backend ", nowhere)


def test_wrong_credentials_of_the_broker(cluster, servers, require):
    require("rabbitmq")
    host = servers.get("rabbitmq").url.rpartition("@")[2]
    app = app_with(cluster, broker_url=f"amqp://guest:{SECRET}@{host}")

    assert_cannot_tell(app, ["check"], "the broker ", "ACCESS_REFUSED")


@BOTH
def test_wrong_credentials_of_the_backend(cluster):
    url = cluster.config["settings"]["result_backend"]
    host = url.rpartition("://")[2].rpartition("@")[2].partition("/")[0]
    app = app_with(cluster, result_backend=backend_at(cluster, host, SECRET))

    assert_cannot_tell(app, ["check"], "the result backend ", host)


@pytest.mark.parametrize("setting", ["result_backend", "broker_url"])
@pytest.mark.parametrize("command", [*COMMANDS, ["watch", "--count", "1"]], ids=" ".join)
def test_url_that_cannot_be_parsed_is_not_quoted(cluster, nowhere, command, setting):
    """The parser quotes what stands before the slash: "Port could not be cast ..."."""
    app = app_with(cluster, **{setting: f"redis://:{SECRET}/more@{nowhere}/0"})

    found = call(app, *command, "--json")

    assert 69 == found.code
    assert f"the {setting} URL cannot be parsed: percent-encode" in found.stdout
    assert SECRET not in found.stdout + found.stderr


def backend_at(cluster, host, password):
    """Return the address of the cluster's result backend, on another host for another user."""
    url = cluster.config["settings"]["result_backend"]
    before, _, after = url.rpartition("://")
    path = after.partition("/")[2]
    return f"{before}://nobody-of-that-name:{password}@{host}/{path}"
