"""The site names all that exists, and nothing that does not."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import shlex
from collections import Counter

import celery.canvas
import celery.exceptions
import celery.result
import click
import pytest
from docs._ext import mermaid, terminal
from docs._ext.generated import (
    EXIT_STATUSES,
    ISSUES,
    MARK,
    MODULES,
    anchor,
    public_names,
    versions_of,
)

from chordguard import failures, settings, signals
from chordguard.__main__ import main
from chordguard.cli import calling
from chordguard.ledger.tables import DEFAULT_NAMES
from chordguard.metrics import COUNTED, GAUGES
from chordguard.patches import registry
from chordguard.recovery.kinds import KINDS
from tests.docs.pages import PAGES, blocks, calls, section, sentences, source_of, text_of
from tests.harness import ROOT

TEXTS = {page: text_of(page) for page in PAGES}
#: The changelog has a test of its own, and tells of what was.
WRITTEN = {page: source_of(page) for page in PAGES if page != "changelog.md"}
EVERYTHING = "\n".join(TEXTS[page] for page in WRITTEN)

CONTEXT = click.Context(main)
COMMANDS = {name: main.get_command(CONTEXT, name) for name in main.list_commands(CONTEXT)}

#: Options of other programs that the pages call.
OTHER_OPTIONS = {"--loglevel", "--database"}

#: Where a name in code font may come from, beside the public ones.
NAMESPACES = (
    *(builtins, celery, celery.canvas, celery.exceptions, celery.result),
    *(celery.Celery, celery.result.AsyncResult, celery.result.GroupResult),
)
#: Names of Celery, redis-py and Prometheus that are in none of these.
OTHER_NAMES = {"RedisBackend", "Backend", "Task", "TaskResult"}


def codes(text):
    """Return what is in code font outside of blocks."""
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def rows(text):
    """Return the rows of the tables of a text, without their headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_pages_have_a_title_and_stand_in_the_contents():
    listed = re.findall(r"^([a-z]+)$", "".join(b.text for b in blocks(WRITTEN["index.md"])), re.M)

    assert sorted(PAGES) == sorted([*(f"{name}.md" for name in listed), "index.md"])
    for page, text in WRITTEN.items():
        assert re.match(r"# \S.*\n\n\S", text), page


def test_every_setting_has_an_entry_and_no_other():
    entries = re.findall(r"^### (\w+)$", section(TEXTS["settings.md"], "All settings"), re.M)

    assert list(settings.SETTINGS) == entries
    for name, setting in settings.SETTINGS.items():
        entry = TEXTS["settings.md"].split(f"### {name}\n")[1].split("\n### ")[0]
        default = setting.default_from or repr(setting.default).replace("'", '"')
        assert f"`{default}`" in entry
        assert setting.meaning.replace("`", "") in entry.replace("`", "")


def test_every_switch_has_a_row_and_no_other():
    table = rows(section(TEXTS["settings.md"], "Switches"))[2:]

    assert {f"`{p.setting}`": f"`{not p.is_opt_in}`" for p in registry.values()} == {
        name: default for name, default, _ in table
    }


def test_only_settings_that_exist_are_named():
    known = {*settings.SETTINGS, *(patch.setting for patch in registry.values())}
    others = {"chord_unlock", "chord_fix_", "chord_id", *DEFAULT_NAMES, *signals.__all__, *registry}
    others |= {"chord_stuck", "chord_too_old"}  # events in the log
    others |= {name.removeprefix("celery_") for name in (*GAUGES, *COUNTED)}
    named = {
        found.lower()
        for found in re.findall(r"(?<![\w.])(?:CELERY_)?(chord_[a-z]\w+)", EVERYTHING, re.I)
    }

    assert set() == named - known - others


def test_every_fix_has_an_entry_with_its_defects_and_no_other():
    text = TEXTS["fixes.md"].split("\n## ", 2)[2]
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^###? |\Z)", text, re.M | re.DOTALL))

    assert set(registry) == set(entries)
    for name, patch in registry.items():
        table = rows(entries[name])[2:]
        assert [
            (defect.id, versions_of(defect.since, defect.until)) for defect in patch.defects
        ] == [(row[0], row[2]) for row in table]
        assert f"Switch: `{patch.setting}`" in entries[name]


def test_only_defects_that_exist_are_reported():
    assert set(ISSUES) <= {defect.id for patch in registry.values() for defect in patch.defects}


def test_the_index_of_defects_names_each():
    table = rows(section(TEXTS["fixes.md"], "All defects"))[2:]

    assert Counter(
        (defect.id, patch.name) for patch in registry.values() for defect in patch.defects
    ) == Counter((row[0].split("]")[0][1:], *codes(row[2])) for row in table)


def test_every_fix_has_a_place_where_it_acts():
    text = section(WRITTEN["rollout.md"], "Where each fix acts")
    named = [name for _, fixes in rows(text)[2:] for name in codes(fixes)]

    assert sorted(registry) == sorted(named)


def test_every_command_has_an_entry_with_its_options_and_no_other():
    text = section(TEXTS["commands.md"], "All commands")
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.M | re.DOTALL))

    assert set(COMMANDS) == set(entries)
    for name, command in COMMANDS.items():
        declared = {
            option
            for param in command.params
            if isinstance(param, click.Option)
            for option in (*param.opts, *param.secondary_opts)
        }
        shown = [code for row in rows(entries[name])[2:] for code in codes(row[0])]
        assert declared == {code for code in shown if code.startswith("-")}, name


def test_only_options_that_exist_are_named():
    known = {
        option
        for command in (main, *COMMANDS.values())
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", EVERYTHING))

    assert set() == named - known - OTHER_OPTIONS


@pytest.mark.parametrize("page", WRITTEN)
def test_commands_that_are_shown_exist(page):
    for line, _ in calls(TEXTS[page]):
        shown = re.match(r"(?:celery -A proj chords|python -m chordguard) (.*)", line)
        if shown is None:
            assert re.match(
                r"(python -m venv|\. |pip install|celery -A proj worker|python (run|manage)\.py"
                r"|uvicorn|curl|mkdir|cd|django-admin) ?",
                line,
            ), line
            continue
        arguments = shlex.split(shown[1].partition("#")[0])
        if arguments[:1] == ["-A"]:
            del arguments[:2]
        name, command, rest = main.resolve_command(CONTEXT, arguments)
        assert command is not None, name
        command.make_context(name, rest)


def test_outputs_are_shown_where_they_are_run():
    pages = {page for page in WRITTEN for _, output in calls(TEXTS[page]) if output.strip()}

    # test_walk.py; tests/cli/test_docs.py and test_states.py; below.
    assert {"start.md", "operate.md", "sql.md"} == pages


def test_the_statements_are_those_that_the_command_prints():
    from click.testing import CliRunner

    ((command, shown),) = [call for call in calls(WRITTEN["sql.md"]) if call[1].strip()]
    printed = CliRunner().invoke(main, command.split()[3:])

    assert (0, shown.strip()) == (printed.exit_code, printed.stdout.strip())


def test_every_exit_status_has_a_row_and_no_other():
    statuses = {calling.HEALTHY, calling.PROBLEMS, calling.UNUSABLE}
    statuses |= {calling.CANNOT_TELL, calling.CANCELLED}
    table = rows(section(TEXTS["json.md"], "Exit statuses"))[2:]

    assert statuses == set(EXIT_STATUSES)
    assert sorted(statuses) == [int(row[0]) for row in table]
    named = re.findall(r"exit(?:s with| status is| status) (\d+)", EVERYTHING, re.I)
    assert {int(status) for status in named} <= statuses


def test_every_metric_has_a_row_and_no_other():
    table = rows(section(TEXTS["monitor.md"], "Metrics"))[2:]
    named = set(re.findall(r"celery_chord_\w+", EVERYTHING))

    assert [*GAUGES, *COUNTED] == [codes(row[0])[0] for row in table]
    assert named <= {*GAUGES, *COUNTED}


def test_outcomes_are_named():
    assert set(signals.OUTCOMES) <= set(codes(section(TEXTS["monitor.md"], "Metrics")))


def test_every_diagnosis_is_explained_and_no_other():
    text = section(WRITTEN["operate.md"], "Diagnoses")
    by_symptom = rows(section(WRITTEN["pending.md"], "By symptom"))[2:]

    assert list(KINDS) == re.findall(r"^### (.+)$", text, re.M)
    assert list(KINDS) == [codes(row[0])[0] for row in by_symptom]


def test_every_public_name_is_documented_and_no_other():
    shown = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", TEXTS["api.md"], re.M)

    assert sorted(f"{module}.{name}" for module, name in public_names()) == sorted(shown)


def test_every_public_name_has_a_docstring():
    for module, name in public_names():
        found = getattr(importlib.import_module(module), name)
        if callable(found) and not isinstance(found, type(signals.chord_ended)):
            assert found.__doc__, f"{module}.{name}"


def test_only_names_that_exist_are_imported_in_examples():
    for page, text in WRITTEN.items():
        for module, names in re.findall(r"from (chordguard[\w.]*) import ([\w, ]+)", text):
            assert module in MODULES, page
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page}: {name}"


def test_only_names_that_exist_are_in_code_font():
    public = {name for _, name in public_names()}
    for page, text in WRITTEN.items():
        for code in codes(text):
            named = re.match(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+)\b(?!\.py)|(\w+)\(", code)
            if named is None or code.startswith(("ExcType", "CREATE")):
                continue
            name = named[1] or named[2]
            is_known = name in public | OTHER_NAMES
            assert is_known or any(hasattr(space, name) for space in NAMESPACES), f"{page}: {code}"


def test_no_sentence_stands_twice():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = Counter(
        sentence
        for text in (readme, *WRITTEN.values())
        for sentence in sentences(MARK.sub("", text))
        if len(sentence.split()) >= 5
    )

    assert [] == [sentence for sentence, count in found.items() if count > 1]


def test_the_record_is_shown_with_all_its_keys():
    (shown,) = (
        ast.literal_eval(block.text)
        for block in blocks(WRITTEN["tolerant.md"], "python")
        if failures.MARKER in block.text
    )

    class Failure:
        task_id = shown["task_id"]
        state = shown["state"]
        value = ZeroDivisionError("division by zero")

    assert list(shown.items()) == list(failures.record_of(Failure(), shown["index"]).items())


def test_the_picture_of_the_readme_shows_what_the_page_shows():
    svg = terminal.PICTURE.read_text(encoding="utf-8")

    assert terminal.words_in(svg)[-len(terminal.shown().split()) :] == terminal.shown().split()
    assert not re.search(r"(url\(|href=|src=).?https?:", svg)


def test_every_diagram_has_its_picture_and_no_other():
    assert {mermaid.picture_of(text) for text in mermaid.diagrams()} == set(
        mermaid.PICTURES.glob("*.svg")
    )
    for text in mermaid.diagrams():
        assert all(mermaid.title_of(text))


def test_pictures_hold_no_script_and_load_nothing():
    for picture in mermaid.PICTURES.glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert "<script" not in text
        assert set() == set(re.findall(r"(?:href|src)=\"(?!#)[^\"]*", text))
        assert set() == set(re.findall(r"url\((?!#)[^)]*", text))


def test_every_marker_is_filled():
    assert not MARK.search("".join(TEXTS.values()))
    assert anchor("chord_timeout") == "chord_timeout"


@pytest.mark.parametrize("page", WRITTEN)
def test_python_blocks_compile(page):
    for block in blocks(TEXTS[page], "python"):
        compile(block.text, page, "exec")
