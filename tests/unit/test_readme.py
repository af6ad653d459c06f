"""README and changelog say what the code says, and their examples run."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, _state
from click.testing import CliRunner

import chordguard
from chordguard import failures, settings, signals
from chordguard.__main__ import FINE, main
from chordguard.engine.patch import Patch
from chordguard.engine.versions import TESTED_VERSIONS, lies_in
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


def table(first_header: str) -> dict[str, dict[str, str]]:
    """Return the rows of the table with this first header, by the code in their first cell."""
    lines = iter(README.splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_header} |"))
    names = cells_of(header)
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = cells_of(line)
        assert len(names) == len(cells), line
        (key,) = codes(cells[0])
        assert key not in rows, f"{key} has two rows"
        rows[key] = dict(zip(names, cells, strict=True))
    return rows


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def section(text: str, heading: str) -> str:
    """Return what stands under `heading`, up to the next one."""
    return re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def versions_of(patch: Patch) -> str:
    """Return the tested versions that have the defect, as the table writes them."""
    affected = [
        version
        for version in TESTED_VERSIONS
        if lies_in(tuple(map(int, version.split("."))), patch.since, patch.until)
    ]
    return affected[0] if len(affected) == 1 else f"{affected[0]} - {affected[-1]}"


def test_every_setting_has_a_row_and_no_other():
    assert list(settings.SETTINGS) == list(table("Setting"))


@pytest.mark.parametrize("setting", settings.SETTINGS.values(), ids=lambda setting: setting.name)
def test_the_default_of_a_setting_is_the_real_one(setting):
    (default,) = codes(table("Setting")[setting.name]["Default"])
    if setting.default_from:
        assert setting.default_from == default
    else:
        assert repr(setting.default) == repr(ast.literal_eval(default))


def test_every_patch_has_a_row_and_no_other():
    assert set(PATCHES) == set(table("Patch"))


@pytest.mark.parametrize("patch", PATCHES.values(), ids=lambda patch: patch.name)
def test_the_row_of_a_patch_says_what_its_module_declares(patch):
    row = table("Patch")[patch.name]
    assert [patch.setting] == codes(row["Switch"])
    assert list(patch.ids) == re.findall(r"\b[A-EJ]\d+[a-z]?\b", row["Defects"])
    assert versions_of(patch) == row["Celery"]
    assert row["What you see without it"]
    if patch.backends:
        assert ", ".join(patch.backends) == row["Backend"]
    else:
        assert row["Backend"] in ("all", "eager mode")


def test_every_patch_has_a_place_where_it_acts():
    named = codes(section(README, "### Producers and workers").split("\n- Workers only")[0])
    named = [name for name in named if name != "get()"]
    assert sorted(PATCHES) == sorted(named)


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


def test_every_public_name_is_documented():
    not_documented = {
        name for name in chordguard.__all__ if not re.search(rf"\b{name}\b", README)
    } - {"ChordguardWarning", "Report"}
    assert set() == not_documented


def test_the_record_is_shown_with_all_its_keys():
    (shown,) = (ast.literal_eval(block) for block in blocks("python") if failures.MARKER in block)

    class Failure:
        task_id = shown["task_id"]
        state = shown["state"]
        value = ZeroDivisionError("division by zero")

    assert list(shown.items()) == list(failures.record_of(Failure(), shown["index"]).items())


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
    assert len(sessions) >= 2
    test = doctest.DocTestParser().get_doctest(
        "\n".join(sessions), example, "README.md", "README.md", 0
    )
    report: list[str] = []
    assert 0 == doctest.DocTestRunner().run(test, out=report.append).failed, "".join(report)


def test_the_choices_for_one_chord_are_accepted(example):
    (block,) = (block for block in blocks("python") if "strict(job" in block)
    exec(compile(block, "README.md", "exec"), example)


def test_the_settings_of_the_django_example_are_accepted():
    (block,) = (block for block in blocks("python") if block.startswith("CELERY_"))
    values: dict[str, Any] = {}
    exec(block, {}, values)
    app = Celery("django-example", set_as_current=False)
    app.config_from_object(type("Settings", (), values), namespace="CELERY")
    chordguard.install_patches(app)
    try:
        app.finalize()
        for name, value in values.items():
            assert value == settings.get(app, name.removeprefix("CELERY_").lower())
    finally:
        chordguard.uninstall_patches(app)
        app.close()


def test_the_statements_for_the_tables_are_those_that_the_command_prints():
    (command,) = (block for block in blocks("console") if "chordguard ddl" in block)
    arguments = command.removeprefix("$ python -m chordguard ").split()

    printed = CliRunner().invoke(main, arguments)

    assert FINE == printed.exit_code, printed.output
    assert [printed.stdout.strip()] == [block.strip() for block in blocks("sql")]


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


def test_links_within_the_readme_lead_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings
    for path in re.findall(r"\]\((?!#|https?:)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
