"""What is shown in a real terminal, narrow and wide, and what goes elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import pyte
import pytest

from chordguard.cli.screen import WIDE
from tests.chords import stuck
from tests.cli.calls import CLUSTER, PATH, call, project, run
from tests.harness import wait_until

pytestmark = CLUSTER

pytest.importorskip("rich")

WIDTHS = (80, 200)
LINES = 50

#: Seconds that a command may take.
DEADLINE = 30


class Terminal:
    """A process in a terminal of so many columns, and what is on its screen."""

    def __init__(self, folder, columns, arguments):
        self.screen = pyte.Screen(columns, LINES)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        env.update(TERM="xterm", PYTHONPATH=os.pathsep.join([str(folder), PATH]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chordguard", "-A", "proj", *arguments],
            cwd=folder,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Where the tests run in the background it is ignored, and so it would be here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)

    def read(self):
        """Take in what came; return whether there may be more."""
        if not select.select([self.master], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other end was closed
            return False
        self.stream.feed(data)
        return bool(data)

    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def shows(self, what):
        self.read()
        return what in self.text()

    def type(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """Return the exit status."""
        deadline = time.monotonic() + DEADLINE
        while self.read() and time.monotonic() < deadline:
            pass
        return self.process.wait(DEADLINE)


@pytest.fixture
def terminal(tmp_path, cluster):
    """Return a function that starts a command in a terminal."""
    folder = project(tmp_path, cluster.config)

    @contextmanager
    def start(columns, *arguments):
        terminal = Terminal(folder, columns, arguments)
        try:
            yield terminal
        finally:
            if terminal.process.poll() is None:
                terminal.process.kill()
            terminal.process.wait()
            os.close(terminal.master)

    return start


@pytest.mark.parametrize("columns", WIDTHS)
def test_list_fits_the_terminal(cluster, gate, terminal, columns):
    result = stuck.waiting_chord(cluster, gate, cluster.tasks.collect.s())
    group_id = result.parent.id

    with terminal(columns, "list") as shown:
        assert 0 == shown.end(), shown.text()

    title, row, *more = shown.text().splitlines()
    numbers = ["done", "failed", "rate", "eta"] if columns >= WIDE else ["done"]
    assert ["chord", "diagnosis", "age", *numbers, "body"] == title.split()
    # An id is whole, so that it can be copied; the row is one line.
    assert [group_id, "running"] == row.split()[:2]
    assert "1/2 " in row
    assert row.endswith(" tests.collect")
    assert [] == more
    gate.open()


@pytest.mark.parametrize("columns", WIDTHS)
def test_check_is_broken_at_words_and_keeps_its_indent(cluster, gate, terminal, columns):
    group_id = stuck.waiting_chord(cluster, gate).parent.id

    with terminal(columns, "check", "--max-age", "0") as shown:
        assert 1 == shown.end(), shown.text()

    lines = shown.text().splitlines()
    assert f"{group_id}  running" == lines[0]
    assert all(line.startswith("  ") for line in lines[1:-1])
    assert "1 live chord, 1 of them in trouble" == lines[-1]
    advice = f"-> nothing is wrong but its age; to give it up: celery chords revoke {group_id}"
    assert advice in " ".join(line.strip() for line in lines)
    assert (columns == 200) == (len(lines) == 5)
    # What is in no danger is yellow.
    assert "brown" == shown.screen.buffer[0][0].fg
    gate.open()


def test_watch_shows_bars_until_it_is_stopped(cluster, gate, terminal):
    result = stuck.waiting_chord(cluster, gate)

    with terminal(80, "watch", "--interval", "0.2") as shown:
        wait_until(lambda: shown.shows("1/2"), DEADLINE, "the chord")
        assert result.parent.id in shown.text()
        assert "━" in shown.text()
        assert re.search(r"0 failed, \S+, .* left", shown.text())
        gate.open()
        wait_until(lambda: shown.shows("0 live chords"), DEADLINE, "its end")
        shown.process.send_signal(signal.SIGINT)
        assert 130 == shown.end()


def test_fix_asks_in_the_terminal(cluster, gate, terminal):
    result = stuck.member_lost(cluster, gate)

    with terminal(80, "fix") as shown:
        wait_until(lambda: shown.shows("Do it?"), DEADLINE, "the question")
        assert f"{result.parent.id}: member-lost" in shown.text()
        shown.type("y\n")
        assert 0 == shown.end(), shown.text()

    assert f"{result.parent.id}  fail-members: done" in shown.text()
    assert "FAILURE" == cluster.outcome(result).state


def test_ctrl_c_cancels(cluster, gate, terminal):
    stuck.member_lost(cluster, gate)

    with terminal(80, "repair", "--auto") as shown:
        wait_until(lambda: shown.shows("go on?"), DEADLINE, "the question")
        shown.process.send_signal(signal.SIGINT)
        assert 130 == shown.end(), shown.text()

    assert 1 == call(cluster.app, "check").code


def test_elsewhere_it_is_plain(cluster, gate, tmp_path):
    """Without rich, and where stdout is no terminal."""
    result = stuck.waiting_chord(cluster, gate)
    folder = project(tmp_path, cluster.config)
    (folder / "rich.py").write_text("raise ImportError('no rich here')\n")

    found = run(folder, "-m", "chordguard", "-A", "proj", "list")

    assert 0 == found.code, found.stderr
    assert "\x1b" not in found.stdout
    assert f"{result.parent.id}  running " in found.stdout
    gate.open()


def test_without_rich_a_terminal_gets_plain_text(cluster, gate, terminal, tmp_path):
    result = stuck.waiting_chord(cluster, gate)
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')\n")

    with terminal(80, "list") as shown:
        assert 0 == shown.end(), shown.text()

    assert result.parent.id in shown.text()
    gate.open()
