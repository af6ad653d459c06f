"""Fixtures: the servers, clusters of app and worker, and what tests and tasks share on disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import harness
from tests.servers import ServerAbsent, Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

#: Bytes of a worker's log that the report of a failed test shows.
LOG_SHOWN = 8000

#: Tests of one worker that run in one process; more of them are shared out.
GROUP_SIZE = 40

SHOWN_VERSIONS = ("celery", "kombu", "billiard", "redis", "sqlalchemy", "wrapt")

_servers = Servers()


class Record:
    """A file to which tasks append a line each time they run."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def lines(self) -> list[str]:
        path = Path(self.path)
        return path.read_text().splitlines() if path.exists() else []

    def count(self, start: str) -> int:
        """Return how many lines start with `start`."""
        return sum(line.startswith(start) for line in self.lines())


class Gate:
    """A file for which the task `wait_for_file` waits."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        Path(self.path).touch()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers, each looked for when it is asked for."""
    yield _servers
    _servers.close()


@pytest.fixture(scope="session")
def clusters_kept(servers: Servers) -> Iterator[harness.Clusters]:
    kept = harness.Clusters(servers)
    yield kept
    kept.close()


@pytest.fixture
def require(servers: Servers) -> Callable[..., None]:
    """Skip the test where one of the named servers is absent; fail it where CI is set."""

    def check(*names: str) -> None:
        for name in names:
            try:
                servers.get(name)
            except ServerAbsent as error:
                if os.environ.get("CI"):
                    pytest.fail(str(error), pytrace=False)
                pytest.skip(str(error))

    return check


def needed_by(backend: str, *brokers: str) -> list[str]:
    """Return the servers that a test needs; skip it where the package of its backend is absent."""
    if backend in harness.DJANGO_BACKENDS and importlib.util.find_spec("django") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Django is not installed")
    return harness.servers_of(backend, *brokers)


@pytest.fixture
def clusters(
    clusters_kept: harness.Clusters, require: Callable[..., None]
) -> Iterator[Callable[..., harness.Cluster]]:
    """Return `harness.Clusters.__call__`, for tests that want to say themselves what they need."""

    def get(backend: str = "redis", broker: str = "redis", **options: Any) -> harness.Cluster:
        require(*needed_by(backend, broker))
        return clusters_kept(backend, broker, **options)

    def alone(backend: str = "redis", broker: str = "redis", **options: Any) -> Any:
        require(*needed_by(backend, broker))
        return clusters_kept.alone(backend, broker, **options)

    get.alone = alone  # type: ignore[attr-defined]
    yield get
    clusters_kept.settle_down()


@pytest.fixture(params=harness.BACKENDS)
def backend_kind(request: pytest.FixtureRequest) -> str:
    """The result backend; a test that wants fewer parametrizes this name itself."""
    return request.param


@pytest.fixture
def broker_kind() -> str:
    """The broker; a test that wants RabbitMQ, too, parametrizes this name itself."""
    return "redis"


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest,
    clusters: Callable[..., harness.Cluster],
    backend_kind: str,
    broker_kind: str,
) -> harness.Cluster:
    """An app and a ready worker; ``@pytest.mark.cluster(patched=False, ...)`` gives options."""
    return clusters(backend_kind, broker_kind, **cluster_options(request.node))


def cluster_options(item: pytest.Item) -> dict[str, Any]:
    """Return what ``@pytest.mark.cluster(...)`` says of a test, its class and its file."""
    options: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("cluster"))):
        options.update(mark.kwargs)
    return options


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record",
        action="store_true",
        help="write down what Celery does without the patches (tests/conformance/stock)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A run that is terminated stops its workers, as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", "xdist_group(name): tests that run in one process")
    config.addinivalue_line("markers", "alone: starts workers of its own, shares nothing")
    config.addinivalue_line("markers", "stock: what Celery does without the patches")
    config.addinivalue_line("markers", "nightly: takes long, or is proved by another test, too")
    config.addinivalue_line("markers", "newest: about what does not depend on the Celery version")
    config.addinivalue_line(
        "markers",
        "cluster(patched=True, settings=None, concurrency=2, pool='prefork', **worker):"
        " options of the fixture `cluster`",
    )


def pytest_report_header() -> list[str]:
    versions = []
    for name in SHOWN_VERSIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    spec = importlib.util.find_spec("chordguard")
    return [", ".join(versions), f"chordguard from {spec.origin if spec else 'nowhere'}"]


#: Tests of our own texts, commands and servers: `nox -s tests` runs them on the newest Celery
#: alone, the nightly run on every Celery.
FOR_NEWEST = (
    "tests/acceptance/test_damaged.py",
    "tests/acceptance/test_demo.py",
    "tests/acceptance/test_diagnosis.py::test_watchdog_works_in_other_pools",
    "tests/acceptance/test_harness.py",
    "tests/acceptance/test_rights.py",
    "tests/acceptance/test_sql_ledger.py::TestCrowd",
    "tests/acceptance/test_tolerant_chords.py::TestLongErrors",
    "tests/canvases/test_canvases.py::test_canvas_can_be_made_smaller",
    "tests/cli/",
    "tests/docs/",
    "tests/monitoring/",
    "tests/unit/monitoring/",
    "tests/django/",
    "tests/web/",
    "tests/unit/test_",
)


#: Tests of a ledger of its own that run with the others.
QUICK_WITH_OWN_LEDGER = "tests/patches/results/test_own_ledger.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests run in one process, one after the other: those that share a worker.

    Those marked `alone` share nothing. What needs no worker goes by its file.
    """
    sizes: Counter[str] = Counter()
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        # To chords it is one more SQL database, and a slow one: the ledger's own tests run on it.
        # What has a store of its own is counted there as on that store.
        repeated = {"mysql", "django-mysql", *harness.WITH_OWN_LEDGER}
        is_repeated = bool(repeated & {*map(str, parameters.values())})
        if is_repeated and not item.nodeid.startswith(("tests/unit/", QUICK_WITH_OWN_LEDGER)):
            item.add_marker(pytest.mark.nightly)
        if item.nodeid.startswith(FOR_NEWEST):
            item.add_marker(pytest.mark.newest)
        if item.get_closest_marker("xdist_group") is None:
            needed = worker_needed(item)
            sizes[needed] += 1
            part = (sizes[needed] - 1) // GROUP_SIZE
            item.add_marker(pytest.mark.xdist_group(f"{needed} {part}"))


def worker_needed(item: pytest.Item) -> str:
    """Return which worker a test needs: equal texts mean the same one."""
    fixtures = getattr(item, "fixturenames", ())
    path = item.nodeid.partition("::")[0]
    if item.get_closest_marker("alone"):
        return item.nodeid
    if not {"cluster", "with_fix", "without_fix"} & {*fixtures}:
        # It needs none, or asks for one itself.
        return path
    asked = cluster_options(item)
    settings = asked.pop("settings", None) or {}
    fixed = {name: value for name, value in settings.items() if not harness.is_live(name)}
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return repr((parameters.get("backend_kind"), sorted(asked.items()), fixed))


#: What the processes of a parallel run used.
_used_elsewhere: set[str] = set()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = [used.describe() for used in _servers.used]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _used_elsewhere.update(getattr(node, "workeroutput", {}).get("servers", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    used = sorted({*_used_elsewhere, *(server.describe() for server in _servers.used)})
    terminalreporter.write_line("servers: " + (", ".join(used) or "none"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    for worker in harness.running:
        worker.begin_log()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if not report.failed:
        return
    for worker in harness.running:
        if text := worker.log_text():
            report.sections.append((f"log of {worker.hostname}", text[-LOG_SHOWN:]))
