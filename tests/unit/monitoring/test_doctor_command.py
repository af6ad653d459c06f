"""`python -m chordguard doctor` prints what the doctor finds; its exit code says how bad it is."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import celery
import pytest
from click.testing import CliRunner

import chordguard
from chordguard.__main__ import FINE, UNUSABLE, WRONG, main

SECRET = "hunter2"
REDIS = f"redis://:{SECRET}@localhost:1/0"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a module with an app into the working directory; return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = []

    def write(source: str) -> str:
        name = f"project_{tmp_path.name.replace('-', '_')}_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


GOOD = f"""
    from celery import Celery
    from chordguard import install_patches

    app = Celery("good", broker="memory://", backend="{REDIS}", set_as_current=False)
    install_patches(app)
"""


def invoke(name: str):
    return CliRunner().invoke(main, ["doctor", "-A", name])


@pytest.mark.parametrize("suffix", ["", ":app", ".app"])
def test_command_prints_the_report(project, suffix):
    result = invoke(project(GOOD) + suffix)

    assert FINE == result.exit_code, result.output
    assert f"chordguard on Celery {celery.__version__}" in result.stdout
    assert "  header_order: applied" in result.stdout
    assert "0 dangerous findings" in result.stderr
    defects = result.stdout.partition("Defects of this Celery:")[2]
    assert "  B10: closed by header_order - " in defects
    assert ("  A6: closed by chain_failures" in defects) == (celery.VERSION < (5, 7))
    assert "open" not in defects


def test_command_tells_what_is_dangerous_without_passwords(project):
    result = invoke(project(GOOD + f"    app.conf.result_backend = 'x://u:{SECRET}@host'\n"))

    assert WRONG == result.exit_code, result.output
    assert "result_backend: the result backend cannot be loaded" in result.stdout
    assert "1 dangerous finding\n" in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("app = 3", "expected a Celery app, found 3"),
        (GOOD + "    app.conf.imports = ['no_such_module']\n", "No module named 'no_such_module'"),
        (GOOD + "    app.task(name='x', shared=False)(lambda: 1)\n", "SyntaxError"),
        (
            GOOD.replace(
                "install_patches(app)", "app.conf.update(chord_timeout=-1); app.finalize()"
            )
            + "    install_patches(app)\n",
            "SettingError: chord_timeout = -1 makes no sense",
        ),
    ],
)
def test_command_tells_why_an_app_cannot_be_loaded(project, source, reason):
    result = invoke(project(source))

    assert UNUSABLE == result.exit_code, result.output
    assert "" == result.stdout
    assert reason in result.stderr


def test_command_wants_an_app():
    assert UNUSABLE == CliRunner().invoke(main, ["doctor"]).exit_code


def test_looking_creates_no_tables(project, tmp_path):
    source = GOOD.replace(REDIS, f"db+sqlite:///{tmp_path / 'results.sqlite'}")

    result = invoke(project(source))

    assert FINE == result.exit_code, result.output
    assert not (tmp_path / "results.sqlite").exists()


@pytest.mark.skipif(
    sys.version_info >= (3, 12) and celery.VERSION < (5, 3),
    reason="Celery 5.2 looks for backends in a way that Python 3.12 has removed",
)
def test_module_is_run_as_a_command(project):
    name = project(GOOD)
    source = str(Path(chordguard.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "chordguard", "doctor", "-A", name],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )

    assert FINE == done.returncode, done.stderr
    assert "applied" in done.stdout
