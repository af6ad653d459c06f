"""Draw what a page shows of the command line as a picture, for the README.

``python docs/_ext/terminal.py`` draws it with rich (``chordguard[cli]``). The page's text is tested
against a real chord, and the picture against the page.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

__all__ = ("PICTURE", "shown", "words_in")

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "operate.md"
PICTURE = DOCS / "pictures" / "check.svg"

#: The command whose output is drawn.
COMMAND = "celery -A proj chords check"

#: How each part of the output is drawn, by a pattern.
STYLES = {
    r"^\$ .*$": "bold",
    r"member-lost|1 of them in trouble": "bold red",
    r"-> .*$": "green",
}


def shown() -> str:
    """Return the command and its output, as the page shows them."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(\$ .*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = (
        block for block in blocks if block.startswith(f"$ {COMMAND}\n") and block.count("\n$") == 0
    )
    return str(block)


def words_in(svg: str) -> list[str]:
    """Return the words that a picture shows."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg)
    return " ".join(html.unescape(text).replace("\xa0", " ") for text in texts).split()


def draw() -> str:
    """Return the picture."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=96, file=Path("/dev/null").open("w"))  # noqa: SIM115
    text = Text(shown().rstrip())
    for pattern, style in STYLES.items():
        for found in re.finditer(pattern, text.plain, re.MULTILINE):
            text.stylize(style, *found.span())
    console.print(text)
    svg = console.export_svg(title="A stuck chord")
    # A picture loads nothing.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(), encoding="utf-8")
