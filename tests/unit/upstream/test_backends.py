"""What result backends are capable of, and what fixes call them."""

from __future__ import annotations

import importlib

import pytest
from celery import Celery
from celery.backends.base import BaseBackend, BaseKeyValueStoreBackend, DisabledBackend

from chordguard import install_patches, uninstall_patches
from chordguard.engine.versions import celery_version
from chordguard.upstream import backends
from chordguard.upstream.backends import Capabilities

COUNTED_IN_REDIS = Capabilities(counts=True, keeps_ledger=True)
POLLED = Capabilities(polls=True)
INCREMENTED = Capabilities(counts=True, increments=True)
REFUSED = Capabilities()

#: Of DynamoDB Celery has counted chords since 5.4.
DYNAMODB = POLLED if celery_version() < (5, 4) else INCREMENTED

KINDS = {
    "redis:RedisBackend": COUNTED_IN_REDIS,
    "redis:SentinelBackend": COUNTED_IN_REDIS,
    "database:DatabaseBackend": Capabilities(polls=True, keeps_ledger=True),
    "cache:CacheBackend": INCREMENTED,
    "dynamodb:DynamoDBBackend": DYNAMODB,
    "filesystem:FilesystemBackend": POLLED,
    "s3:S3Backend": POLLED,
    "mongodb:MongoBackend": POLLED,
    "cassandra:CassandraBackend": POLLED,
    "elasticsearch:ElasticsearchBackend": POLLED,
    "couchdb:CouchBackend": POLLED,
    "consul:ConsulBackend": POLLED,
    "arangodb:ArangoDbBackend": POLLED,
    "rpc:RPCBackend": REFUSED,
    "base:DisabledBackend": REFUSED,
}


class OwnCounter(BaseBackend):
    """Counts in a way of its own, as the backend of django-celery-results does."""

    def apply_chord(self, header_result_args, body, **kwargs):
        raise NotImplementedError


class WithoutCounter(BaseKeyValueStoreBackend):
    """A key-value store that cannot increment."""


@pytest.fixture
def patched_app():
    app = Celery("capable", broker="memory://", set_as_current=False)
    install_patches(app)
    yield app
    uninstall_patches(app)


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("patched", [False, True])
def test_capabilities_of_the_backends_of_celery(path, patched, request):
    if patched:
        request.getfixturevalue("patched_app")
    module, name = path.split(":")
    kind = getattr(importlib.import_module(f"celery.backends.{module}"), name)

    assert KINDS[path] == backends.capabilities(kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (OwnCounter, Capabilities(counts=True)),
        (WithoutCounter, POLLED),
        (type(None), REFUSED),
    ],
)
def test_capabilities_of_other_classes(kind, expected):
    assert expected == backends.capabilities(kind)


def test_instance_is_as_capable_as_its_class():
    app = Celery("capable", set_as_current=False)

    assert REFUSED == backends.capabilities(app.backend)
    assert isinstance(app.backend, DisabledBackend)
    assert REFUSED == backends.capabilities(None)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("redis://nowhere", {"Redis"}),
        ("db+sqlite://", {"SQL", "sqlite"}),
        ("db+postgresql+psycopg2://nowhere/x", {"SQL", "postgresql"}),
        ("cache+memory://", {"counting"}),
        ("file:///nowhere", {"polled"}),
        ("rpc://", set()),
        (None, set()),
        ("nonsense://", set()),
    ],
)
def test_names_for_fixes(url, names):
    app = Celery("named", backend=url, set_as_current=False)

    assert names == backends.names_of(app)
    # It is not made, which may connect.
    assert "backend" not in vars(app)
    assert not hasattr(app._local, "backend")
