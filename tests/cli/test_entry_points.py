"""The ways to the commands: `celery chords` and `python -m chordguard`, as people call them."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner

import chordguard
from chordguard.cli import COMMANDS, chords
from chordguard.cli.ranges import DURATION, Duration, Range
from tests.chords import stuck
from tests.cli.calls import CLUSTER, call, project, run
from tests.harness import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib: Any = None

pytestmark = CLUSTER

GROUP = "celery.commands"


@pytest.fixture
def folder(tmp_path, cluster):
    """A folder with the project `proj`, in which Celery finds the plugin, installed or not."""
    installed = importlib.metadata.entry_points(group=GROUP)
    if "chords" not in installed.names:
        info = tmp_path / f"chordguard-{chordguard.__version__}.dist-info"
        info.mkdir()
        version = f"Metadata-Version: 2.1\nName: chordguard\nVersion: {chordguard.__version__}\n"
        (info / "METADATA").write_text(version)
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nchords = chordguard.cli:chords\n")
    return project(tmp_path, cluster.config)


@pytest.mark.skipif(
    sys.version_info >= (3, 12) and pytest.importorskip("celery").VERSION < (5, 3),
    reason="kombu 5.2 reads entry points in a way that Python 3.12 has removed",
)
def test_celery_has_the_commands(folder, cluster, gate):
    result = stuck.part_lost(cluster, gate)

    checked = run(folder, "-m", "celery", "-A", "proj", "chords", "--json", "check")
    assert 0 == call(cluster.app, "repair", result.parent.id, "--yes").code
    again = run(folder, "-m", "celery", "-A", "proj", "chords", "status", "--json")

    assert (1, "part-lost") == (checked.code, checked.data["problems"][0]["diagnosis"])
    assert 0 == again.code, again.stderr
    gate.open()


def test_module_has_the_same_commands(folder, cluster, gate):
    stuck.part_lost(cluster, gate)

    before = run(folder, "-m", "chordguard", "-A", "proj", "--json", "check")
    after = run(folder, "-m", "chordguard", "check", "-A", "proj", "--json")

    assert (1, 1) == (before.code, after.code)
    assert [one["group_id"] for one in before.data["problems"]] == [
        one["group_id"] for one in after.data["problems"]
    ]
    gate.open()


def test_usage_errors_are_told_apart(folder):
    for arguments in (["check"], ["check", "-A", "no_such_module"], ["-A", "proj", "no-such"]):
        found = run(folder, "-m", "chordguard", *arguments)
        assert (2, "") == (found.code, found.stdout)
        assert found.stderr


def test_plugin_is_light(folder):
    """Celery loads it with every call."""
    code = """
import json, sys
import celery, click
before = set(sys.modules)
import chordguard.cli
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    modules = json.loads(run(folder, "-c", code).stdout)

    assert {"chordguard", "chordguard.cli"} == set(modules) - sys.stdlib_module_names


def test_every_command_is_there_and_says_what_it_does():
    help_text = CliRunner().invoke(chords, ["--help"]).stdout

    for name in COMMANDS:
        assert f"\n  {name} " in help_text
        assert 0 == CliRunner().invoke(chords, [name, "--help"]).exit_code
    assert "..." not in help_text.partition("Commands:")[2]


NUMBERS = [
    (name, option.opts[0])
    for name in COMMANDS
    for option in chords.get_command(click.Context(chords), name).params
    if isinstance(
        option.type, (Duration, Range, click.types.FloatParamType, click.types.IntParamType)
    )
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1", "1e300", "many"])
@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_number_that_makes_no_sense_is_refused_and_named(command, option, value):
    """`1e400` is infinite, and `time.sleep` does not take `1e300`."""
    app = Celery("numbers", set_as_current=False, broker="memory://", backend="cache+memory://")

    found = call(app, command, f"{option}={value}")

    assert (2, "") == (found.code, found.stdout)
    assert f"'{option}': " in found.stderr
    assert value in found.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("90s", 90), ("15m", 900), ("6h", 21600), ("2d", 172800)],
)
def test_duration_may_have_a_unit(text, seconds):
    assert seconds == DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["6 hours", "h", "1w", "-1h", "1h30m", "36501d", "9" * 400])
def test_duration_that_makes_no_sense_is_refused_and_named(text):
    with pytest.raises(click.BadParameter, match="such as 90, 15m, 6h or 2d"):
        DURATION.convert(text, None, None)


def test_commands_have_numbers():
    assert {("check", "--max-age"), ("list", "--min-age"), ("watch", "--interval")} < {*NUMBERS}


@pytest.mark.parametrize("port", ["65536", "-1", "nan", "1e3", "9" * 5000])
def test_port_that_makes_no_sense_is_refused_and_named(port):
    app = Celery("numbers", set_as_current=False, broker="memory://", backend="cache+memory://")

    found = call(app, "metrics", f"--listen=localhost:{port}")

    assert 2 == found.code
    assert f"localhost:{port}" in found.stderr


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_package_declares_the_entry_point():
    path = Path(ROOT) / "pyproject.toml"
    if not path.exists():
        pytest.skip("not a checkout")
    points = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["entry-points"]

    assert {"chords": "chordguard.cli:chords"} == points[GROUP]
