"""Pages and tables that are made from the code: fixes, settings, commands, JSON, Python names.

A page says where one belongs with a line of its own: ``<!-- generated: settings -->``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import click

from chordguard import settings as declared
from chordguard import signals
from chordguard.__main__ import main
from chordguard.cli import calling
from chordguard.engine.patch import Defect, Patch
from chordguard.engine.versions import TESTED_VERSIONS, Version, lies_in
from chordguard.metrics import COUNTED, GAUGES
from chordguard.patches import registry

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ("GENERATORS", "MODULES", "fill", "public_names", "setup")

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

#: The public modules with what they are for. One that this version does not have is left out.
MODULES = {
    "chordguard": "Import these from `chordguard`.",
    "chordguard.signals": "Signals, as Celery has them. Each is sent in the process that acts, "
    "with the app as sender.",
    "chordguard.metrics": 'Metrics for Prometheus. Needs `pip install "chordguard[metrics]"`.',
    "chordguard.aio": "Await chords in asyncio.",
    "chordguard.django": 'For Django projects. Needs `pip install "chordguard[django]"`.',
    "chordguard.web": 'The page for operators. Needs `pip install "chordguard[web]"`.',
}

#: The folders of the fixes, in the order of the page, with the question that each answers.
ROOMS = {
    "canvas": "How a chord is built and started",
    "redis": "Redis",
    "database": "SQL databases",
    "django": "Django",
    "polling": "Result backends that are polled",
    "counting": "Key-value stores that count",
    "results": "What a chord's result tells",
    "worker": "What a worker does around a task",
}

#: Where a defect is reported upstream, by its id: repository and number.
ISSUES = {
    "A1": ("celery#1881", "celery#3709"),
    "A2": ("celery#1988",),
    "A4": ("celery#6792",),
    "A5": ("celery#8786",),
    "A6": ("celery#9674",),
    "A7": ("celery#3396",),
    "A8": ("celery#3709",),
    "A13": ("celery#2132",),
    "B1": ("celery#7285",),
    "B3": ("celery#8182",),
    "B4": ("celery#4412",),
    "B5": ("celery#6115",),
    "B6": ("celery#3363",),
    "B7": ("celery#2911",),
    "B8": ("celery#5237",),
    "B9": ("celery#1857",),
    "B12": ("celery#9909",),
    "B18": ("celery#2952",),
    "C1": ("celery#1544",),
    "C3": ("celery#1700",),
    "C4": ("celery#6685",),
    "C5": ("celery#4337",),
    "C7": ("celery#5349",),
    "C9": ("celery#10477",),
    "C10": ("celery#1803",),
    "C11": ("celery#10514",),
    "D1": ("celery#4660",),
    "D2": ("celery#461",),
    "D10": ("celery#7851",),
    "E1": ("celery#4575",),
    "J1": ("django-celery-results#397",),
    "J4": ("django-celery-results#183",),
    "J6": ("django-celery-results#413",),
}

#: The words for the exit statuses.
EXIT_STATUSES = {
    calling.HEALTHY: "healthy: the command did its work and found no problem",
    calling.PROBLEMS: "problems were found, or are left after a repair",
    calling.UNUSABLE: "wrong arguments, or the app cannot be loaded or has no patches",
    calling.CANNOT_TELL: "unknown: the backend, the broker or the workers did not answer; "
    "the message says which",
    calling.CANCELLED: "cancelled with Ctrl-C",
}


def fill(text: str) -> str:
    """Return the text of a page with what is generated for it."""
    return MARK.sub(lambda mark: GENERATORS[mark[1]](), text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Fill each page as it is read; leave the signatures of classes out."""

    def read(_: Sphinx, __: str, source: list[str]) -> None:
        source[0] = fill(source[0])

    def sign(_: Sphinx, what: str, *_rest: Any) -> tuple[str, str] | None:
        return ("", "") if what == "class" else None

    app.connect("source-read", read)
    app.connect("autodoc-process-signature", sign)
    return {"parallel_read_safe": True}


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(headers)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def code(text: Any) -> str:
    """Return `text` in code font."""
    return f"`{text}`"


#: What is a name in a line of prose: it has an underscore, or it is called.
NAME = re.compile(r"(?<![\w`./'])(?:[a-z_][\w.]*\(\)|[a-z_]\w*_\w+)(?![\w`/.'])")


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop, and with names in code font."""
    if "`" not in text:
        text = NAME.sub(lambda name: code(name[0]), text)
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: roles and literals in code font, addresses as links."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"https://github\.com/celery/([\w-]+)/(?:issues|pull)/(\d+)", issue, text)
    return re.sub(r"(?<![(<])(https://\S+)", r"<\1>", text)


def issue(found: re.Match[str]) -> str:
    """Return a link to an issue of Celery, or of a package beside it."""
    package = "" if found[1] == "celery" else found[1]
    return f"[{package}#{found[2]}]({found[0]})"


# -- Fixes ---------------------------------------------------------------------------------


def versions_of(since: Version | None, until: Version | None) -> str:
    """Return the tested Celery versions from `since` on and before `until`."""
    affected = [
        version
        for version in TESTED_VERSIONS
        if lies_in(tuple(map(int, version.split("."))), since, until)
    ]
    return affected[0] if len(affected) == 1 else f"{affected[0]} - {affected[-1]}"


def backends_of(patch: Patch, defect: Defect) -> str:
    """Return where a defect shows."""
    return ", ".join(defect.only_on or patch.backends) or "all"


def room_of(patch: Patch) -> str:
    """Return the folder that a fix is in."""
    return str(_modules()[patch.name].__name__).split(".")[-2]


def fixes() -> str:
    """Return one entry for each fix with a row for each defect, and an index of all defects."""
    parts = ["## All defects", _index()]
    rooms: dict[str, list[Patch]] = {room: [] for room in ROOMS}
    for patch in registry.values():
        rooms.setdefault(room_of(patch), []).append(patch)
    for room, patches in rooms.items():
        if patches:
            parts += [f"## {ROOMS.get(room, room.capitalize())}", *map(_entry, patches)]
    return "\n\n".join(parts)


def _index() -> str:
    rows = sorted(
        (
            (f"[{defect.id}](#{anchor(patch.name)})", sentence(defect.symptom), code(patch.name))
            for patch in registry.values()
            for defect in patch.defects
        ),
        key=lambda row: (row[0][1], int(re.findall(r"\d+", row[0])[0]), row),
    )
    return table(("Defect", "What you see", "Fix"), rows)


def _entry(patch: Patch) -> str:
    rows = (
        (
            defect.id,
            sentence(defect.symptom),
            versions_of(defect.since, defect.until),
            backends_of(patch, defect),
            ", ".join(map(reported, ISSUES.get(defect.id, ()))) or "-",
        )
        for defect in patch.defects
    )
    default = "`False`: the fix is off by default" if patch.is_opt_in else "`True`"
    return "\n\n".join(
        (
            f"### {patch.name}",
            prose(_modules()[patch.name].__doc__),
            table(("Defect", "What you see", "Celery", "Result backend", "Reported as"), rows),
            f"Switch: `{patch.setting}`, default {default}.{_driver(patch)}",
        )
    )


def reported(name: str) -> str:
    """Return a link to an issue: ``celery#1`` is in celery/celery."""
    repository, _, number = name.partition("#")
    shown = f"#{number}" if repository == "celery" else name
    return f"[{shown}](https://github.com/celery/{repository}/issues/{number})"


def _driver(patch: Patch) -> str:
    since, until = (
        ".".join(map(str, version or ())) for version in (patch.driver_since, patch.driver_until)
    )
    if not since and not until:
        return ""
    bounds = [f"from {since} on"] * bool(since) + [f"before {until}"] * bool(until)
    return f" The defect shows with the package `{patch.driver}` {' and '.join(bounds)}."


def _modules() -> dict[str, Any]:
    from chordguard.patches import ORDER

    return {module.patch.name: module for module in ORDER}


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as MyST makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def versions() -> str:
    """Return how many defects each tested Celery has."""
    rows = []
    for version in TESTED_VERSIONS:
        number = tuple(map(int, version.split(".")))
        ids = {
            (defect.id, patch.name)
            for patch in registry.values()
            for defect in patch.defects
            if lies_in(number, defect.since, defect.until)
        }
        rows.append((version, str(len(ids))))
    return table(("Celery", "Defects that chordguard fixes"), rows)


# -- Settings ------------------------------------------------------------------------------


def settings() -> str:
    """Return an entry for each setting."""
    return "\n\n".join(_setting(setting) for setting in declared.SETTINGS.values())


def _setting(setting: declared.Setting) -> str:
    default = f"the value of Celery's `{setting.default_from}`"
    if not setting.default_from:
        default = code(repr(setting.default).replace("'", '"'))
    facts = (
        f"Default: {default}",
        f"Valid: {values(setting.valid)}",
        f"In Django: `CELERY_{setting.name.upper()}`",
    )
    facts_listed = "\n".join(f"- {fact}" for fact in facts)
    return f"### {setting.name}\n\n{values(sentence(setting.meaning))}\n\n{facts_listed}"


def values(text: str) -> str:
    """Return a line with the values in it in code font."""
    return re.sub(r"'(\w+)'|(?<![\w`'])(True|False|None)(?![\w`'])", _value, text)


def _value(found: re.Match[str]) -> str:
    return code(f'"{found[1]}"' if found[1] else found[2])


def switches() -> str:
    """Return the switch of each fix."""
    rows = (
        (
            code(patch.setting),
            code(not patch.is_opt_in),
            f"[`{patch.name}`](fixes.md#{anchor(patch.name)})",
        )
        for patch in sorted(registry.values(), key=lambda patch: patch.name)
    )
    return table(("Switch", "Default", "Fix"), rows)


# -- Commands and what they print ----------------------------------------------------------


def commands() -> str:
    """Return an entry for each command with its options."""
    context = click.Context(main)
    named = ((name, main.get_command(context, name)) for name in main.list_commands(context))
    return "\n\n".join(_command(name, found) for name, found in named if found is not None)


def _command(name: str, command: click.Command) -> str:
    arguments = [each.metavar or "" for each in command.params if isinstance(each, click.Argument)]
    rows = [_option(param) for param in command.params if isinstance(param, click.Option)]
    usage = " ".join([name, *arguments])
    parts = [f"### {name}", f"Usage: `{usage}`" if arguments else "", prose(command.help)]
    parts += [table(("Option", "Meaning"), rows)] if rows else []
    return "\n\n".join(filter(None, parts))


def _option(option: click.Option) -> tuple[str, str]:
    names = ", ".join(map(code, option.opts + option.secondary_opts))
    value = "" if option.is_flag else f" {code(option.metavar or option.type.name.upper())}"
    default = f" Default: `{option.default}`." if option.show_default else ""
    meaning = sentence(option.help) if option.help else ""
    return f"{names}{value}", f"{meaning}{default}".strip()


def exits() -> str:
    """Return the exit statuses."""
    words = calling.STATUSES
    rows = (
        (str(status), code(words.get(status, "error")), sentence(meaning))
        for status, meaning in EXIT_STATUSES.items()
    )
    return table(("Exit status", "`status` in JSON", "Meaning"), rows)


def answers() -> str:
    """Return what each command prints with ``--json``, from its schema."""
    schema = json.loads((files("chordguard.cli") / "schema.json").read_text(encoding="utf-8"))
    common = {"schema", "command", "status"}
    parts = []
    for answer in schema["oneOf"]:
        names = {name: field for name, field in answer["properties"].items() if name not in common}
        parts += [f"### {answer['title']}", _fields(names, answer.get("required", ()))]
    parts.append("## Objects in the answers")
    for name, shape in schema["$defs"].items():
        if "properties" in shape:
            parts += [f"### {name}", _fields(shape["properties"], shape.get("required", ()))]
    return "\n\n".join(parts)


def _fields(fields: dict[str, Any], required: Iterable[str]) -> str:
    headers = ["Field", "Type", "Meaning"]
    rows = [
        [
            code(name) + ("" if name in required else " (optional)"),
            _type(field),
            sentence(field["description"]) if "description" in field else "",
        ]
        for name, field in fields.items()
    ]
    width = 3 if any(row[2] for row in rows) else 2
    return table(headers[:width], (row[:width] for row in rows))


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return name if name in _SIMPLE else f"[{name}](#{anchor(name)})"
    if "oneOf" in field or "anyOf" in field:
        return " or ".join(_type(each) for each in field.get("oneOf") or field["anyOf"])
    if "enum" in field:
        return ", ".join(map(code, field["enum"]))
    if "const" in field:
        return code(field["const"])
    kinds = field.get("type", "any")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(
        f"array of {_type(field.get('items', {}))}" if kind == "array" else kind for kind in kinds
    )


#: Definitions of the schema that are values, not objects.
_SIMPLE = ("seconds", "diagnosis", "action")


def metrics() -> str:
    """Return the metrics with their types."""
    rows = [(code(name), "gauge", sentence(meaning)) for name, meaning in GAUGES.items()]
    rows += [
        (code(name), "counter" if name.endswith("_total") else "histogram", sentence(meaning))
        for name, meaning in COUNTED.items()
    ]
    return table(("Metric", "Type", "Meaning"), rows)


# -- Python --------------------------------------------------------------------------------


def public_names() -> Iterator[tuple[str, str]]:
    """Yield module and name of all that is public."""
    for module in MODULES:
        if importlib.util.find_spec(module) is not None:
            yield from ((module, name) for name in importlib.import_module(module).__all__)


def api() -> str:
    """Return what the docstrings say of each public name."""
    parts = []
    for module, about in MODULES.items():
        names = [name for home, name in public_names() if home == module]
        if names:
            parts += [f"## {module}", about]
            parts += [_documented(module, name) for name in sorted(names, key=_rank(module))]
    return "\n\n".join(parts)


def _rank(module: str) -> Callable[[str], Any]:
    def rank(name: str) -> tuple[int, str]:
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type):
            return (2 if issubclass(found, BaseException) else 1), name
        return 0, name

    return rank


def _documented(module: str, name: str) -> str:
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type):
        kind = "autoexception" if issubclass(found, BaseException) else "autoclass"
        members = "" if issubclass(found, BaseException) else "\n   :members:"
    else:
        kind = "autofunction" if callable(found) and not _is_signal(found) else "autodata"
        members = "\n   :no-value:" if kind == "autodata" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {module}.{name}{members}\n```"


def _is_signal(found: Any) -> bool:
    return isinstance(found, type(signals.chord_ended))


GENERATORS: dict[str, Callable[[], str]] = {
    "answers": answers,
    "api": api,
    "commands": commands,
    "exits": exits,
    "fixes": fixes,
    "metrics": metrics,
    "settings": settings,
    "switches": switches,
    "versions": versions,
}
