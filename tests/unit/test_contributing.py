"""CONTRIBUTING, the workflows and the matrix name what there is, and agree on the versions."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chordguard

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def console_of(document: str) -> str:
    return "".join(re.findall(r"^```console\n(.*?)^```$", read(document), re.DOTALL | re.MULTILINE))


def sessions() -> set[str]:
    """Return the names of the functions that noxfile.py decorates as sessions."""
    return {
        node.name
        for node in ast.parse(read("noxfile.py")).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(item).startswith("nox.session") for item in node.decorator_list)
    }


def sessions_in(text: str) -> set[str]:
    """Return what stands behind `nox -s` in `text`, up to its own arguments."""
    commands = re.findall(r"nox -s ([a-z ]+)", text)
    return {name for command in commands for name in command.split()}


def environments() -> set[str]:
    """Return the environments that tox.ini lists."""
    tox = configparser.ConfigParser()
    tox.read_string(read("tox.ini"))
    return {
        "".join(choice)
        for line in tox["tox"]["env_list"].split()
        for choice in itertools.product(
            *(part.split(",") for part in re.split(r"[{}]", line.strip(",")))
        )
    }


def pythons_of(text: str) -> set[str]:
    """Return the versions of Python that the classifiers in `text` name."""
    return set(re.findall(r"Python :: (3\.\d+)\"", text))


@pytest.fixture
def workflows() -> str:
    """The text of all workflows."""
    if not WORKFLOWS.exists():
        pytest.skip("not a checkout")
    return "".join(path.read_text(encoding="utf-8") for path in sorted(WORKFLOWS.iterdir()))


def test_every_session_has_a_row_and_no_other():
    rows = re.findall(r"^\| `nox -s (\w+)` \|", read("CONTRIBUTING.md"), re.MULTILINE)

    assert sorted(sessions()) == sorted(rows)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_only_sessions_that_exist_are_named(document):
    named = sessions_in(read(document))

    assert named
    assert named <= sessions()


def test_the_tox_environments_and_labels_shown_exist():
    shown = console_of("CONTRIBUTING.md") + read("tox.ini")

    assert set(re.findall(r"tox (?:run )?-e ([\w-]+)", shown)) <= environments()
    assert {"ends"} == set(re.findall(r"tox (?:run )?-m ([\w-]+)", shown))
    (ends,) = re.findall(r"^ +ends = (.+)$", read("tox.ini"), re.MULTILINE)
    assert set(ends.split(", ")) <= environments()


def test_the_extras_and_groups_of_the_set_up_exist():
    shown = console_of("CONTRIBUTING.md")
    ((extras, group),) = re.findall(r'"\.\[([\w,]+)\]" --group (\w+)', shown)

    assert set(extras.split(",")) <= set(
        importlib.metadata.metadata("chordguard").get_all("Provides-Extra") or ()
    )
    assert f"\n{group} = [\n" in read("pyproject.toml")


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)]+)\)", read(document))

    assert links or document == "SECURITY.md"
    for path in links:
        if path.startswith(".") and not WORKFLOWS.exists():
            continue  # not a checkout
        assert (ROOT / path).exists(), path


def test_modules_and_folders_named_exist():
    named = re.findall(r"`(\w+(?:\.py|/))`", read("CONTRIBUTING.md").split("## Find your way")[1])

    package = ROOT / "src" / "chordguard"
    assert set() == {
        name for name in named if not (package / name).exists() and not [*package.glob(f"*/{name}")]
    }


def test_the_workflows_run_sessions_that_exist(workflows):
    (matrix,) = re.findall(r"session: \[(.+)\]", workflows)
    named = sessions_in(workflows) | set(matrix.split(", "))

    assert {"lint", "typing", "build", "nightly"} <= named
    assert named <= sessions()


def test_ci_selects_the_tests_that_the_session_selects(workflows):
    (selection,) = re.findall(r'-m "(.+)"$', workflows, re.MULTILINE)

    assert [selection] == re.findall(r'^QUICK = "(.+)"$', read("noxfile.py"), re.MULTILINE)


def test_ci_runs_every_python_with_every_celery_of_the_matrix(workflows):
    python, celery = (
        json.loads(found)
        for name in ("python", "celery")
        for found in re.findall(rf"^ +{name}: (\[.+\])$", workflows, re.MULTILINE)
    )
    cells = {*itertools.product(python, celery)}
    cells |= {*re.findall(r'\{ python: "(.+)", celery: "(.+)" \}', workflows)}

    assert {name for name in environments() if name.count("-") == 1} == {
        f"py{python.replace('.', '')}-celery{celery}" for python, celery in cells
    }


def test_classifiers_and_matrix_name_the_same_pythons():
    tested = {name.partition("-")[0] for name in environments()}

    assert tested == {
        f"py{version.replace('.', '')}" for version in pythons_of(read("pyproject.toml"))
    }


def test_the_version_stands_in_one_place():
    assert chordguard.__version__ == importlib.metadata.version("chordguard")
    assert 'dynamic = ["version"]' in read("pyproject.toml")


@pytest.mark.parametrize(
    "module",
    ["benchmarks.__main__", "tests.canvases.__main__", "tests.chaos.__main__", "tests.fleets"],
)
def test_what_a_session_runs_can_be_imported(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)
