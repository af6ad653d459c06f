"""The pages of the site as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.harness import ROOT

DOCS = ROOT / "docs"

PAGES = sorted(path.name for path in DOCS.glob("*.md"))

_FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the options of a directive."""

    language: str
    text: str


def source_of(page: str) -> str:
    """Return a page as it is written."""
    return (DOCS / page).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """Return a page with what is generated for it."""
    from docs._ext.generated import fill

    return fill(source_of(page))


def blocks(text: str, language: str = "") -> list[Block]:
    """Return the fenced blocks of a text, or those in one language."""
    found = [Block(kind.strip(), inner) for _, kind, inner in _FENCE.findall(text)]
    return [block for block in found if language in ("", block.language)]


def section(text: str, heading: str) -> str:
    """Return what stands under the second-level `heading`, up to the next one."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]


def calls(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command that is shown, with the output that is shown below it."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def prose(text: str) -> str:
    """Return a text without its blocks, comments, addresses and what is in code font."""
    text = _FENCE.sub("", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "`", text)
    return re.sub(r"\]\([^)]*\)|<https?:[^>]*>", "", text)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of the prose of a text, without markup."""
    text = re.sub(r"^\s*([-*|>#]|\d+\.)", "\n\n", _FENCE.sub("\n\n", text), flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|(?<!\\)\|", text):
        for found in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split())):
            plain = re.sub(r"\]\([^)]*\)|[\[\]*`_]", "", found).strip()
            if plain:
                yield plain
