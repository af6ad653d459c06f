"""Draw paragraphs, docstrings and log lines at random, for a reader who judges their English.

``python -m tests.docs.draw [SEED]``
"""

from __future__ import annotations

import ast
import random
import re
import sys
from collections.abc import Iterator

from tests.docs.pages import PAGES, source_of
from tests.harness import ROOT

#: How many of each kind are drawn.
COUNT = 20
#: A shorter paragraph is a title or a list of links.
WORDS = 12

SOURCES = sorted((ROOT / "src" / "chordguard").rglob("*.py"))
#: What writes a line to the log.
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "log", "warn_once"}


def paragraphs() -> Iterator[tuple[str, str]]:
    """Yield where each paragraph of the site is, and its text."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", source_of(page), flags=re.DOTALL | re.MULTILINE)
        for paragraph in re.split(r"\n\s*\n", text):
            if len(paragraph.split()) >= WORDS and paragraph[0] not in "|#<":
                yield page, " ".join(paragraph.split())


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield where each docstring of the package is, and its text."""
    for path, node in _nodes():
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield f"{path}: {getattr(node, 'name', 'module')}", text


def log_lines() -> Iterator[tuple[str, str]]:
    """Yield where each line for the log is written, and its text."""
    for path, node in _nodes():
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", None) or getattr(function, "id", None)
        if name in LOGGING:
            texts = (each.value for each in node.args if isinstance(each, ast.Constant))
            yield from ((f"{path}:{node.lineno}", text) for text in texts if isinstance(text, str))


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield str(path.relative_to(ROOT)), node


def main(seed: int) -> None:
    """Print what is drawn; the same seed draws the same from the same texts."""
    for kind in (paragraphs, docstrings, log_lines):
        everything = [found for found in kind() if len(found[1].split()) > 3]
        chosen = random.Random(seed).sample(everything, min(COUNT, len(everything)))
        print(f"\n== {kind.__name__.replace('_', ' ')}: {len(chosen)} of {len(everything)}")
        for number, (where, text) in enumerate(chosen, 1):
            print(f"{number:2}. [{where}] {text}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
