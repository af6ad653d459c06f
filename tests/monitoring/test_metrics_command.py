"""`celery chords metrics` prints, writes or serves what Prometheus reads."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("chordguard.cli.calling")

from tests.app_factory import make_app
from tests.chords import stuck
from tests.cli.calls import PATH, call, project
from tests.harness import wait_until
from tests.servers import free_port

#: No other file's chords are on it.
pytestmark = pytest.mark.cluster(settings=stuck.ALONE, shared_by=__name__)

#: Seconds in which it has to serve, and to stop.
DEADLINE = 20.0


@pytest.fixture
def backend_kind():
    return "redis"


@pytest.fixture
def unreadable(cluster):
    settings = {**cluster.config["settings"], "result_backend": f"redis://127.0.0.1:{free_port()}"}
    return make_app({**cluster.config, "settings": settings}, patched=True)


def test_prints_them(cluster, gate):
    result = stuck.waiting_chord(cluster, gate)
    try:
        found = call(cluster.app, "metrics")
        as_json = call(cluster.app, "metrics", "--json", "--ask-workers")
    finally:
        gate.open()
    cluster.run(result)

    assert (0, "") == (found.code, found.stderr)
    assert "\ncelery_chord_active 1.0\n" in found.stdout
    assert "\ncelery_chord_active 1.0\n" in as_json.data["metrics"]


def test_writes_a_whole_file(cluster, tmp_path):
    path = tmp_path / "chords.prom"

    found = call(cluster.app, "metrics", "--textfile", str(path))

    assert (0, "", "") == (found.code, found.stdout, found.stderr)
    assert "\ncelery_chord_up 1.0\n" in path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_file_tells_that_chords_cannot_be_read(unreadable, tmp_path):
    path = tmp_path / "chords.prom"

    found = call(unreadable, "metrics", "--textfile", str(path))

    assert 69 == found.code
    assert "celery_chord_up is 0" in found.stderr
    assert "\ncelery_chord_up 0.0\n" in path.read_text()
    assert "celery_chord_active " not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--textfile", "/no/such/folder/x.prom"], "/no/such/folder/x.prom cannot be written"),
        (["--listen", "nowhere"], "'nowhere' is no address: expected HOST:PORT"),
        (["--listen", ":99999"], "':99999' is no address"),
        (["--listen", ":1", "--textfile", "x.prom"], "exclude each other"),
    ],
)
def test_what_cannot_be_done_is_said(cluster, arguments, message):
    found = call(cluster.app, "metrics", *arguments)

    assert 2 == found.code
    assert message in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_serves_them_until_it_is_stopped(cluster, tmp_path, number):
    folder = project(tmp_path, cluster.config)
    command = [sys.executable, "-m", "chordguard", "-A", "proj", "metrics", "--listen"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), PATH])}
    log = tmp_path / "log"
    with log.open("w") as output, contextlib.ExitStack() as closing:
        process = subprocess.Popen(
            [*command, "127.0.0.1:0"], cwd=folder, env=env, stderr=output, stdin=subprocess.DEVNULL
        )
        closing.callback(process.wait)
        closing.callback(process.kill)
        found = wait_until(
            lambda: re.search(r"http://127.0.0.1:(\d+)/metrics", log.read_text()), DEADLINE, "it"
        )
        assert found
        with urllib.request.urlopen(found[0], timeout=DEADLINE) as answer:
            text = answer.read().decode()
        taken = call(cluster.app, "metrics", "--listen", f"127.0.0.1:{found[1]}")
        process.send_signal(number)
        code = process.wait(DEADLINE)

    assert "\ncelery_chord_up 1.0\n" in text
    assert (2, True) == (taken.code, "cannot listen on 127.0.0.1:" in taken.stderr)
    assert 0 == code
