"""Calls of the commands in this process, as `celery` makes them, and in one of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

import chordguard
from chordguard.cli import chords
from tests.chords.stuck import ALONE
from tests.harness import ROOT

BOTH = pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])
#: The cluster of all these tests. Names and workers of members are stored, too.
CLUSTER = pytest.mark.cluster(settings={**ALONE, "result_extended": True}, concurrency=4)

#: The Python path of a process that runs a command on the app of a cluster.
PATH = os.pathsep.join([str(Path(chordguard.__file__).parents[1]), str(ROOT)])

SCHEMA = json.loads((files("chordguard.cli") / "schema.json").read_text(encoding="utf-8"))
_validator = jsonschema.Draft202012Validator(SCHEMA)


@dataclass
class Call:
    """How a call ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """What it printed as JSON, which the schema describes."""
        data = json.loads(self.stdout)
        _validator.validate(data)
        return data


def call(app: Any, *arguments: str, text: str | None = None) -> Call:
    """Call a command; `text` is what somebody types."""
    done = CliRunner().invoke(chords, arguments, obj=SimpleNamespace(app=app), input=text)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Call(done.exit_code, done.stdout, done.stderr)


def project(folder: Path, config: dict[str, Any], name: str = "proj") -> Path:
    """Write a module with the app of `config`, patched, and return the folder it is in."""
    (folder / f"{name}.py").write_text(
        "import json\n"
        "from tests.app_factory import make_app\n"
        f"app = make_app(json.loads({json.dumps(config)!r}), patched=True)\n"
    )
    return folder


def run(folder: Path, *command: str, timeout: float = 120, **env: str) -> Call:
    """Run ``python *command`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), PATH]), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Call(done.returncode, done.stdout, done.stderr)


def normalized(text: str) -> str:
    """Return what is printed without what is different each time: ids, times, names."""
    for pattern, stands_for in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00)?", "TIME"),
        (r"\b\d+(\.\d+)? (s|min|h|d)\b", "SECONDS"),
        (r"\b[\d.]+(e-?\d+)?/s", "RATE"),
        (r"[\w-]+@[\w-]+", "WORKER"),
        (r"\b(tests|proj)\.", "proj."),
        (r" +\n", "\n"),
        (r"(?<=\S)   +", "  "),
    ):
        text = re.sub(pattern, stands_for, text)
    return text
