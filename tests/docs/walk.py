"""Follow a page as its reader does: save each file, run each command, compare each output.

A block of Python whose first line is ``# path`` is a file, and is added to one that is there. So is
a `literalinclude` with a caption. A command that serves is left running; the next one like it
takes its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.docs.pages import DOCS, Block, blocks

#: Seconds that a command may take. Packages are downloaded.
DEADLINE = 300.0
#: Seconds until what a server answers has to be what is shown.
PATIENCE = 60.0

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INCLUDED = re.compile(r"^\{literalinclude\} (\S+)$")
SERVES = re.compile(r"^(celery .* worker\b|uvicorn |flask .*\brun\b|python manage.py runserver)")


class Walk:
    """One reader in one folder.

    Arguments:
        folder: Where the reader starts.
        instead: What stands in place of what is shown: addresses of servers.
        env: The environment.
        is_installed: Whether all packages are there already: nothing is installed then.
    """

    def __init__(
        self, folder: Path, instead: Mapping[str, str], env: Mapping[str, str], is_installed: bool
    ) -> None:
        self.cwd = folder
        self.env = {**os.environ, **env}
        self.done: list[str] = []
        self._instead = dict(instead)
        self._is_installed = is_installed
        self._serving: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self, text: str) -> None:
        """Do what a text says, in its order."""
        for block in blocks(text):
            if block.language == "console":
                for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                    command, _, output = part.partition("\n")
                    self._enter(command, output)
            else:
                self._save(block)

    def close(self) -> None:
        """Stop what serves."""
        for process in self._serving.values():
            stop(process)

    def _real(self, text: str) -> str:
        for shown, real in self._instead.items():
            text = text.replace(shown, real)
        return text

    def _save(self, block: Block) -> None:
        included = INCLUDED.match(block.language)
        caption = re.search(r"^:caption: (\S+)$", block.text, re.MULTILINE)
        named = re.match(r"# (\S+\.py)\n", block.text)
        if included and caption and ":pyobject:" not in block.text:
            text = (DOCS / included[1]).resolve().read_text(encoding="utf-8")
            (self.cwd / caption[1]).write_text(self._real(text))
        elif block.language == "python" and named:
            path = self.cwd / named[1]
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(self._real(block.text))

    def _enter(self, command: str, shown: str) -> None:
        self.done.append(command)
        if command.startswith("cd "):
            self.cwd = self.cwd / command.removeprefix("cd ")
        elif self._is_installed and re.match(r"pip |python -m venv|\. ", command):
            return
        elif command == ". .venv/bin/activate":
            self.env["PATH"] = f"{self.cwd}/.venv/bin:{self.env['PATH']}"
            self.env["VIRTUAL_ENV"] = f"{self.cwd}/.venv"
        elif SERVES.match(command):
            self._serve(command)
        else:
            self._run(command, shown)

    def _serve(self, command: str) -> None:
        kind = shlex.split(command)[0]
        if kind in self._serving:
            stop(self._serving.pop(kind))
        with (self.cwd / f"{kind}.log").open("ab") as log:
            self._serving[kind] = subprocess.Popen(
                shlex.split(self._real(command)),
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                executable=self._program(kind),
            )

    def _program(self, name: str) -> str:
        for folder in self.env["PATH"].split(os.pathsep):
            if os.access(f"{folder}/{name}", os.X_OK):
                return f"{folder}/{name}"
        raise AssertionError(f"{name} is not installed")

    def _run(self, command: str, shown: str) -> None:
        """Run a command; one that only asks a server is tried until that answers as shown."""
        deadline = time.monotonic() + (PATIENCE if command.startswith("curl") else 0)
        while True:
            done = subprocess.run(
                ["bash", "-c", self._real(command)],
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
            is_right = done.returncode == 0 and (not shown or same(shown, done.stdout))
            if is_right or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert is_right, f"$ {command}\n{done.stdout}{done.stderr}\nshown:\n{shown}{self._logs()}"
        # The reader copies the id from the answer.
        for before, now in zip(ID.finditer(shown), ID.finditer(done.stdout), strict=False):
            self._instead[before[0]] = now[0]

    def _logs(self) -> str:
        return "".join(
            f"\n{kind}: {(self.cwd / f'{kind}.log').read_text()[-3000:]}"
            for kind in self._serving
            if (self.cwd / f"{kind}.log").exists()
        )


def same(shown: str, printed: str) -> bool:
    """Tell whether a command printed what is shown, but for ids."""
    shown, printed = (ID.sub("ID", text).strip() for text in (shown, printed))
    return shown == printed


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server as Ctrl-C does, and what it started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def walking(
    folder: Path, instead: Mapping[str, str], env: Mapping[str, str], *, is_installed: bool
) -> Iterator[Walk]:
    """Yield a reader; what was started is stopped afterwards."""
    walk = Walk(folder, instead, env, is_installed)
    try:
        yield walk
    finally:
        walk.close()
