"""Run Celery's own integration tests without the patches and with them, and compare.

``python -m tests.compat.integration SOURCE [--backend redis] [pytest's arguments]``; SOURCE is an
unpacked sdist of the installed Celery. Its tests use one fixed queue and fixed Redis keys: each run
has a Redis server (the broker, also) and a database of its own, and so both run at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy
from tests.compat import compare
from tests.servers import PostgreSQL, Redis, Servers

if TYPE_CHECKING:
    from collections.abc import Sequence

BACKENDS = ("redis", "postgresql")
#: The tests of the canvas; those of the backends and the worker do not depend on chords.
TESTS = "t/integration/test_canvas.py"
#: Seconds that one test may take; one of Celery's waits 140 s to see that nothing comes.
TEST_TIMEOUT = 300
#: Lines of a log that are printed when a run ended before its tests did.
LOG_TAIL = 30


@dataclass
class Run:
    """Celery's tests in one process: on one backend, with the patches or without."""

    process: subprocess.Popen[bytes]
    report: Path
    log: Path

    def has_ended_well(self) -> bool:
        """Wait for the tests; tell whether all of them ran, even if some failed."""
        if self.process.wait() in (0, 1):
            return True
        lines = self.log.read_text(errors="replace").splitlines()
        print(f"pytest ended with {self.process.returncode}:", *lines[-LOG_TAIL:], sep="\n")
        return False

    def kill(self) -> None:
        """End the tests, and the worker's processes, if they still run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    source: Path, name: str, broker: str, backend: str, arguments: Sequence[str], *, patched: bool
) -> Run:
    report, log = (source.parent / f"{name}.{ending}" for ending in ("xml", "log"))
    report.unlink(missing_ok=True)
    address = sqlalchemy.engine.make_url(broker)
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "TEST_BROKER": broker,
        "TEST_BACKEND": backend,
        "REDIS_HOST": str(address.host),
        "REDIS_PORT": str(address.port),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short"),
                *("-p", "celery.contrib.pytest", *(["-p", "patched_apps"] if patched else [])),
                *(f"--timeout={TEST_TIMEOUT}", f"--junitxml={report}", TESTS, *arguments),
            ],
            cwd=source,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Run(process, report, log)


def compare_on(backend: str, source: Path, arguments: Sequence[str]) -> bool:
    """Run the tests on `backend`; tell whether the patches made no test fail."""
    servers = Servers()
    postgresql = PostgreSQL()
    databases = []
    runs = []
    try:
        for name in ("stock", "patched"):
            redis = servers.start(name, Redis())
            url = redis.url
            if backend == "postgresql":
                databases.append(postgresql.create_database(servers.get("postgresql")))
                url = f"db+{databases[-1]}"
            patched = name == "patched"
            runs.append(
                start(source, f"{backend}-{name}", redis.url, url, arguments, patched=patched)
            )
        ended = [run.has_ended_well() for run in runs]
        if not all(ended):
            return False
        if compare.main(*(run.report for run in runs)) == 0:
            return True
        print("See", *(run.log for run in runs))
        return False
    finally:
        for run in runs:
            run.kill()
        for database in databases:
            postgresql.drop_database(servers.get("postgresql"), database)
        servers.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compat.integration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--backend", choices=BACKENDS)
    options, arguments = parser.parse_known_args()
    is_fine = True
    for backend in [options.backend] if options.backend else BACKENDS:
        print(f"{options.source.name} on {backend}", flush=True)
        is_fine = compare_on(backend, options.source.resolve(), arguments) and is_fine
        sys.stdout.flush()
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
