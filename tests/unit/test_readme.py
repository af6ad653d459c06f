"""README and changelog say what the code says, and their examples run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import _state

import chordguard
from chordguard import settings, signals
from chordguard.engine.versions import TESTED_VERSIONS
from chordguard.ledger.tables import DEFAULT_NAMES
from chordguard.patches import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

PATCHES = registry


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of README in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", [README, CHANGELOG], ids=["README", "CHANGELOG"])
def test_only_settings_that_exist_are_named(text):
    known = {*settings.SETTINGS, *(patch.setting for patch in PATCHES.values())}
    named = set(re.findall(r"(?<![\w.])(?:CELERY_)?(chord_[a-z]\w+)", text, re.IGNORECASE))
    # The built-in task, the placeholder for a patch's name, the keys of tables and a column.
    others = {
        "chord_unlock",
        "chord_fix_",
        *DEFAULT_NAMES,
        "chord_id",
        *signals.__all__,
    }
    named = {name.lower() for name in named} - others
    named = {name for name in named if f"`{name}.py`" not in text} - set(PATCHES)
    assert set() == named - known


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_compile(block):
    compile(block, "README.md", "exec")


@pytest.fixture
def example() -> Iterator[dict[str, Any]]:
    """The names of the first block, run as it stands; its app is in eager mode."""
    current, default = _state.get_current_app(), _state.default_app
    finalizers = set(_state._on_app_finalizers)
    names: dict[str, Any] = {"__name__": "proj"}
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    app = names["app"]
    app.conf.task_always_eager = True
    yield names
    chordguard.uninstall_patches(app)
    app.close()
    # The tasks of an app are added to each app that is finalized later.
    _state._on_app_finalizers.intersection_update(finalizers)
    _state.set_default_app(default)
    current.set_current()


def test_the_examples_give_what_is_shown(example):
    """The interactive blocks, one after the other."""
    sessions = blocks("pycon")
    assert sessions
    test = doctest.DocTestParser().get_doctest(
        "\n".join(sessions), example, "README.md", "README.md", 0
    )
    report: list[str] = []
    assert 0 == doctest.DocTestRunner().run(test, out=report.append).failed, "".join(report)


def test_the_test_command_is_the_one_that_ci_runs():
    if not (ROOT / ".ci" / "run").exists():
        pytest.skip("not a checkout")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(r"^# --- .*\n(.*)\n# ---", script, re.MULTILINE)
    assert f"{command}\n" in blocks("console")


def test_the_demo_is_one_command():
    assert 'python -m pip install ".[demo]" && python -m chordguard demo\n' in blocks("console")


@pytest.mark.parametrize("patch", PATCHES.values(), ids=lambda patch: patch.name)
def test_the_changelog_has_an_entry_for_every_patch(patch):
    assert f"Off: `{patch.setting} = False`" in re.sub(r"\s+", " ", CHANGELOG)


def test_the_changelog_names_every_setting():
    assert set() == {name for name in settings.SETTINGS if f"`{name}" not in CHANGELOG}


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)

    assert links
    for path in links:
        assert (ROOT / path).exists(), path


def test_the_supported_versions_are_the_tested_ones():
    (row,) = re.findall(r"^\| Celery \| (.*) \|$", README, re.MULTILINE)

    assert list(TESTED_VERSIONS) == row.split(", ")


def test_it_fits_on_a_few_screens():
    assert len(README) < 5000
