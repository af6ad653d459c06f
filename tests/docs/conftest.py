"""A Redis of its own for those who follow the pages, and the environment of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import chordguard
from tests.harness import ROOT
from tests.servers import KINDS, PostgreSQL, Redis, ServerAbsent, Servers

if not (ROOT / "docs" / "conf.py").exists():
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def own_redis() -> Iterator[str]:
    """The address of a Redis that nobody else uses, without a database."""
    try:
        server = Redis().start()
    except ServerAbsent as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    yield server.url.rpartition("/")[0]
    server.stop()


@pytest.fixture(scope="session")
def here() -> dict[str, str]:
    """The environment of a process that uses the packages of this one."""
    package = str(Path(chordguard.__file__).parents[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": package, "C_FORCE_ROOT": "1"}


@pytest.fixture
def database(servers: Servers, require: Callable[..., None]) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    require("postgresql")
    kind = KINDS["postgresql"]
    assert isinstance(kind, PostgreSQL)
    server = servers.get("postgresql")
    url = kind.create_database(server)
    yield url
    kind.drop_database(server, url)
