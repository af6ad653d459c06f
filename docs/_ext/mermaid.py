"""Diagrams: the text is in the page, the picture in docs/diagrams; a page needs no script.

``python docs/_ext/mermaid.py path/to/mermaid.min.js`` draws those whose text has changed, with an
installed Chromium; `nox -s diagrams` does that. A picture is named after its text, so a page that
shows an old one cannot be built.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ("diagrams", "draw", "picture_of", "setup")

DOCS = Path(__file__).parents[1]
PICTURES = DOCS / "diagrams"
#: The names of its program.
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
#: A diagram is as wide as it was drawn, and shrinks with its page to a size that can be read.
SIZE = 'style="width: {width}px; min-width: min({width}px, 36rem)"'
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)

PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="out"></pre>
<script>{script}</script>
<script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false,
    flowchart: {{htmlLabels: false}}, fontFamily: "sans-serif", deterministicIds: true,
    themeVariables: {{fontSize: "15px"}}}});
mermaid.render("{name}", {text}).then(
    drawn => {{ out.textContent = `DRAWN${{btoa(unescape(encodeURIComponent(drawn.svg)))}}END`; }},
    wrong => {{ out.textContent = "FAILED " + wrong; }});
</script>"""


def diagrams() -> Iterator[str]:
    """Yield the text of each diagram of the pages."""
    for page in sorted(DOCS.glob("*.md")):
        yield from BLOCK.findall(page.read_text(encoding="utf-8"))


def picture_of(text: str) -> Path:
    """Return where the picture of a diagram is."""
    return PICTURES / f"d{hashlib.sha256(text.strip().encode()).hexdigest()[:12]}.svg"


def title_of(text: str) -> tuple[str, str]:
    """Return title (``accTitle``) and description (``accDescr``) from the text of a diagram."""
    found = dict(re.findall(r"^\s*(accTitle|accDescr): (.+)$", text, re.MULTILINE))
    return found["accTitle"], found["accDescr"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Declare the directive ``mermaid``, which puts the picture into the page."""
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Mermaid(SphinxDirective):  # type: ignore[misc]
        has_content = True

        def run(self) -> list[nodes.Node]:
            text = "\n".join(self.content)
            picture = picture_of(text)
            if not picture.exists():
                raise self.error("this diagram has changed: draw it with `nox -s diagrams`")
            svg = picture.read_text(encoding="utf-8")
            figure = f'<figure class="diagram" tabindex="0">{svg}</figure>'
            return [nodes.raw("", figure, format="html")]

    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}


def draw(text: str, script: Path) -> str:
    """Return the picture that Mermaid draws of `text`, in Chromium.

    Raises:
        RuntimeError: Mermaid does not understand it, or there is no Chromium.
    """
    chromium = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise RuntimeError("no Chromium: install the package chromium")
    name = picture_of(text).stem
    page = PAGE.format(script=script.read_text(encoding="utf-8"), name=name, text=_quoted(text))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000")
        found = subprocess.run(
            [chromium, *options, f"--user-data-dir={folder}/data", "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    drawn = re.search(r'id="out">DRAWN([\w+/=]+)END<', found)
    if drawn is None:
        raise RuntimeError(re.findall(r'id="out">(.*)', found)[:1] or found[-500:])
    return themed(base64.b64decode(drawn[1]).decode(), text)


def themed(svg: str, text: str) -> str:
    """Return a picture in the colours of the page around it, with a title for who cannot see it."""
    title, description = map(html.escape, title_of(text))
    svg = re.sub(r"<(title|desc)\b.*?</\1>", "", svg, flags=re.DOTALL)
    start, rest = svg.split(">", 1)
    start = re.sub(r'\s(aria-\w+|style|class|role|width|height)="[^"]*"', "", start)
    svg = f"{start}>{rest}"
    width = round(float(re.findall(r'viewBox="\S+ \S+ (\S+) ', svg)[0]))
    svg = svg.replace(
        "<svg",
        f'<svg class="diagram" role="img" aria-label="{title}" {SIZE.format(width=width)}',
        1,
    )
    head = f"<title>{title}</title><desc>{description}</desc>"
    return svg.replace(">", f">{head}", 1) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text).replace("</", "<\\/")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    wanted = {picture_of(text): text for text in diagrams()}
    for picture in set(PICTURES.glob("*.svg")) - set(wanted):
        picture.unlink()
    for picture, text in wanted.items():
        if not picture.exists():
            picture.write_text(draw(text, Path(sys.argv[1])), encoding="utf-8")
            print(picture.relative_to(DOCS), title_of(text)[0])
