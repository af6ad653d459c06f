"""The files that the page brings along: its style, its script, its icon."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

__all__ = ("FILES", "file_named")

KINDS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@cache
def file_named(name: str) -> tuple[bytes, str] | None:
    """Return the content and the type of a file; None where there is no such file."""
    if name not in KINDS:
        return None
    return (files(__package__) / "static" / name).read_bytes(), KINDS[name]


def _address(name: str) -> str:
    found = file_named(name)
    digest = sha256(found[0]).hexdigest()[:12] if found else "0"
    return f"/static/{digest}/{name}"


#: Where each file is, under the page's root; another one when its content changes.
FILES = {name.partition(".")[2]: _address(name) for name in KINDS}
