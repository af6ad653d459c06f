"""The command that serves the page: what it prints, whom it lets in, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from tests.cli.calls import PATH, call, project
from tests.harness import wait_until
from tests.web.browsing import CLUSTER, TOKEN

pytest.importorskip("uvicorn")

pytestmark = CLUSTER


class Served:
    """A page that a process serves."""

    def __init__(self, process, stderr):
        self.process = process
        self.stderr = stderr

    @property
    def said(self):
        return self.stderr.read_text()

    @property
    def address(self):
        wait_until(lambda: "http://" in self.said or self.process.poll() is not None, what="it")
        return re.findall(r"http://\S+", self.said)[0]

    def get(self, **headers):
        request = urllib.request.Request(self.address, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


@contextmanager
def served(cluster, folder, *options, **env):
    project(folder, cluster.config)
    stderr = folder / "stderr"
    with stderr.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "chordguard", "-A", "proj", "web", "--port", "0", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), PATH]), **env},
            stdin=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield Served(process, stderr)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_page_is_served_until_it_is_stopped(cluster, tmp_path, number):
    with served(cluster, tmp_path) as page:
        assert page.address.startswith("http://127.0.0.1:")
        text = page.get()
        assert "read-only" in text
        assert "Token" not in page.said
        with pytest.raises(urllib.error.HTTPError, match="400"):
            page.get(Host="evil.example")
        page.process.send_signal(number)
        assert 0 == page.process.wait(20), page.said
        assert "Traceback" not in page.said


def test_token_is_made_and_printed_where_one_is_needed(cluster, tmp_path):
    with served(cluster, tmp_path, "--allow-actions") as page:
        assert "Sign in to act" in page.get()
        assert re.search(r"^Token: \S{40,}$", page.said, re.MULTILINE)


def test_others_need_the_token_to_look(cluster, tmp_path):
    with served(cluster, tmp_path, "--host", "0.0.0.0", CHORDGUARD_WEB_TOKEN=TOKEN) as page:
        address = page.address.replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert "whoever has it" not in answer.read().decode()
            assert answer.url.endswith("/sign-in")
        assert TOKEN not in page.said


def test_address_in_use_is_told(cluster):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = call(cluster.app, "web", "--port", str(taken.getsockname()[1]))

    assert (2, True) == (found.code, "cannot listen on 127.0.0.1:" in found.stderr)


def test_short_token_is_refused(cluster, tmp_path):
    (tmp_path / "token").write_text("short")

    found = call(cluster.app, "web", "--allow-actions", "--token-file", str(tmp_path / "token"))

    assert (2, True) == (found.code, "the token is too short" in found.stderr)


@pytest.mark.parametrize("package", ["starlette", "jinja2", "uvicorn"])
def test_what_to_install_is_told(cluster, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith(("chordguard.web", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    found = call(cluster.app, "web")

    expected = f'the page needs {package}, which is not installed: pip install "chordguard[web]"\n'
    assert (2, expected) == (found.code, found.stderr)


def test_nothing_else_imports_it():
    code = """
import sys
import chordguard, chordguard.cli, chordguard._install, chordguard.recovery.watchdog
from celery import Celery
chordguard.install_patches(Celery("app"))
found = {n for n in sys.modules if n.startswith(("chordguard.web", "starlette", "jinja2"))}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PATH})
