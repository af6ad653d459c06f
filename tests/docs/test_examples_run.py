"""The Python that the pages show runs, with a real worker, and gives what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import run_page
from tests.docs.pages import DOCS, section, source_of
from tests.docs.walk import walking

START = source_of("start.md")


@pytest.fixture(scope="module")
def project(tmp_path_factory, own_redis, here):
    """The folder of the project of the first section of Start, whose worker runs."""
    folder = tmp_path_factory.mktemp("project")
    text = section(START, "Redis").split("Run it in a second terminal")[0]
    with walking(folder, {"redis://localhost": own_redis}, here, is_installed=True) as walk:
        walk.follow(text)
        yield folder, walk.env


@pytest.mark.parametrize("page", ["tolerant.md", "operate.md", "monitor.md"])
def test_python_of_a_page_runs(page, project):
    folder, env = project
    done = subprocess.run(
        [sys.executable, run_page.__file__, DOCS / page],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    shown = len(re.findall(r"^```(?:python|pycon)$", Path(DOCS / page).read_text(), re.M))
    assert f"{shown} blocks" in done.stdout


def test_all_other_python_is_followed_as_files():
    pages = {"tolerant.md", "operate.md", "monitor.md", "start.md", "changelog.md"}
    others = {path.name for path in DOCS.glob("*.md")} - pages - {"operators.md", "monitoring.md"}

    assert set() == {page for page in others if re.search(r"^```py", source_of(page), re.M)}
    python = re.findall(r"^```python\n(.*?)\n", START, re.M)
    assert all(line.startswith("# proj/") for line in python)
