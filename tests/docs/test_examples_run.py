"""The Python that the pages show runs, with a real worker, and gives what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import run_page
from tests.docs.pages import DOCS, PAGES, section, source_of
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


#: Pages whose examples are run here.
RUN = ["backends.md", "monitor.md", "operate.md", "progress.md", "tolerant.md", "web.md"]
#: Others, with the tests that follow them.
FOLLOWED = {"start.md": "test_walk.py", "django.md": "tests/django/test_startproject.py"}


@pytest.mark.parametrize("page", RUN)
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


def test_python_of_every_page_is_run_or_followed():
    with_python = {page for page in PAGES if re.search(r"^```py", source_of(page), re.M)}

    assert {*RUN, *FOLLOWED} == with_python
    assert all(line.startswith("# proj/") for line in re.findall(r"^```python\n(.*)", START, re.M))
