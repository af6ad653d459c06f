"""The page Start, followed literally."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import section, source_of
from tests.docs.walk import walking
from tests.harness import ROOT
from tests.servers import free_port

START = source_of("start.md")


def test_the_first_section_with_the_packages_of_this_environment(tmp_path, own_redis, here):
    instead = {"redis://localhost": own_redis}
    with walking(tmp_path, instead, here, is_installed=True) as walk:
        walk.follow(section(START, "Redis"))

    assert "python run.py" in walk.done


@pytest.fixture
def newcomer(tmp_path):
    """The environment of a reader to whom pip gives the wheel of this checkout."""
    python = tmp_path / "maker" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "maker"], check=True)
    subprocess.run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "wheels", ROOT],
        check=True,
    )
    (wheel,) = Path(tmp_path / "wheels").glob("*.whl")
    constraint = tmp_path / "constraint.txt"
    constraint.write_text(f"chordguard=={wheel.name.split('-')[1]}\n")
    ours = {str(Path(sys.executable).parent)}
    path = [Path(sys.base_prefix, "bin"), *os.environ["PATH"].split(os.pathsep)]
    return {
        "PATH": os.pathsep.join(str(folder) for folder in path if str(folder) not in ours),
        "PYTHONPATH": "",
        "PIP_CONSTRAINT": str(constraint),
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UVICORN_PORT": str(free_port()),
        "C_FORCE_ROOT": "1",
    }


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_whole_page_from_an_empty_environment(tmp_path, own_redis, database, newcomer):
    """It needs the package registry."""
    instead = {
        "redis://localhost": own_redis,
        "postgresql+psycopg2://postgres@localhost/proj": database,
        "127.0.0.1:8000": f"127.0.0.1:{newcomer['UVICORN_PORT']}",
    }
    folder = tmp_path / "reader"
    folder.mkdir()
    with walking(folder, instead, newcomer, is_installed=False) as walk:
        walk.follow(START)

    assert 4 == sum(command.startswith("pip install") for command in walk.done)
    assert sum("worker" in command for command in walk.done) == 3
