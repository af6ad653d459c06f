"""What the page for operators shows is what the commands print."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from chordguard.__main__ import main
from tests.chords import stuck
from tests.cli.calls import CLUSTER, call, normalized
from tests.harness import ROOT

pytestmark = CLUSTER

if not (ROOT / "docs").exists():
    pytest.skip("not a checkout", allow_module_level=True)

PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(start: str) -> str:
    """Return what the page shows as output of the command that starts so."""
    blocks = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (output,) = {out for command, out in blocks if command.startswith(start) and out[:1] != "$"}
    return normalized(output)


def test_commands_that_are_shown_exist():
    lines = re.findall(r"^\$ (?:celery -A proj chords|python -m chordguard) (.*)$", README, re.M)
    assert lines
    for line in lines:
        arguments = shlex.split(line.partition("#")[0])
        if arguments[:1] == ["-A"]:
            del arguments[:2]
        name, command, rest = main.resolve_command(click.Context(main), arguments)
        assert command is not None, name
        command.make_context(name, rest)


def test_outputs_are_those_of_a_real_chord(cluster, gate):
    group_id = stuck.member_lost(cluster, gate).parent.id
    checked = normalized(call(cluster.app, "check").stdout)
    inspected = normalized(call(cluster.app, "inspect", group_id).stdout)
    counted = normalized(call(cluster.app, "status").stdout)

    assert shown("celery -A proj chords check") == checked
    assert shown("celery -A proj chords inspect") == inspected
    assert shown("celery -A proj chords status") == counted
