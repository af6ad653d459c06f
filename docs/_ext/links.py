"""Check a built site: every link within it leads somewhere, and it loads nothing from elsewhere.

``python docs/_ext/links.py docs/_build/html``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ("Page", "problems")

#: The attributes that make a browser load something, by element.
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "srcset"}

#: What `link` elements name without its being loaded.
NAMED_ONLY = {"canonical", "index", "search", "next", "prev", "author", "copyright"}


class Page(HTMLParser):
    """The anchors, the links and the loaded files of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADS and LOADS[tag] in found and found.get("rel", "") not in NAMED_ONLY:
            self.loads.append(found[LOADS[tag]])


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with the site in the folder `site`, one line each."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no pages"
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    yield f"{name}: loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{name}: {address} does not exist"
            elif parts.fragment and not has_anchor(pages.get(target), parts.fragment):
                yield f"{name}: {address} has no such anchor"


def has_anchor(page: Page | None, fragment: str) -> bool:
    """Tell whether a page has the anchor; what is no page has any."""
    return page is None or unquote(fragment) in page.anchors


if __name__ == "__main__":
    found = [line for folder in sys.argv[1:] for line in problems(Path(folder))]
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
