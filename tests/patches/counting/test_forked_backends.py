from __future__ import annotations

import contextlib
import os
import pickle

import pytest
from celery import Celery

from chordguard import install_patches
from tests.app_factory import make_app
from tests.harness import Stack


@pytest.fixture
def app(servers, require):
    require("redis", "memcached")
    with contextlib.closing(Stack(servers, "memcached", "redis")) as stack:
        app = make_app(stack.config(), patched=True)
        yield app
        app.close()


def in_child(app, function):
    """Return what a function gives in a child that is forked as those of a pool are."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        app._after_fork()
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(function(), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        given = pickle.load(pipe)
    os.waitpid(pid, 0)
    return given


@pytest.mark.parametrize("has_fix", [True, False])
def test_child_connects_anew(app, has_fix):
    app.conf.chord_fix_forked_backends = has_fix
    client = app.backend.client
    client.set("chordguard-forked", "1")

    child = in_child(app, lambda: id(app.backend.client))

    assert has_fix == (child != id(client))
    # That of the parent is as it was.
    assert client is app.backend.client


@pytest.mark.parametrize(("url", "is_made_anew"), [("file:///tmp", True), ("db+sqlite://", False)])
def test_redis_and_sql_see_to_it_themselves(url, is_made_anew):
    app = Celery("forked", broker="memory://", backend=url, set_as_current=False)
    install_patches(app)
    backend = app.backend

    app._after_fork()

    assert is_made_anew == (backend is not app.backend)
    app.close()
