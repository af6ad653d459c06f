"""What Celery does without the patches: a file for each version, ``stock/5.7.0.json``.

A pinned version does not change, so its outcomes are facts. ``nox -s conformance -- --record``
writes them; ``nox -s conformance`` proves them again. Where an outcome depends on which of two
processes is faster, each that was seen is kept, until the canvas of its row changes.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conformance import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FOLDER = Path(__file__).parent / "stock"


@cache
def canvases() -> dict[str, str]:
    """Return a digest of the code of each scenario of the catalogue, by row."""
    code = Path(catalogue.__file__).read_text(encoding="utf-8")
    digests = {}
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Scenario":
            defect, name = (ast.literal_eval(argument) for argument in call.args[:2])
            digest = hashlib.sha256(ast.unparse(call).encode())
            digests[f"{defect} {name}"] = digest.hexdigest()[:12]
    return digests


@cache
def read(version: str) -> dict[str, Any]:
    """Return the record of a Celery version: for each row its canvas and outcomes by backend."""
    path = FOLDER / f"{version}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def outcomes(version: str, row: str, backend: str) -> list[str]:
    """Return what was seen of a row: one outcome, or several that depend on luck."""
    return read(version).get(row, {}).get("outcomes", {}).get(backend, [])


def missing(version: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return which (row, backend) of the catalogue were never run on a version as they are now."""
    record, now = read(version), canvases()
    return [
        f"{row} on {backend}"
        for row, backend in rows
        if record.get(row, {}).get("canvas") != now[row] or not outcomes(version, row, backend)
    ]


def add(version: str, cells: Mapping[tuple[str, str, str], str]) -> None:
    """Write the outcomes of stock's half among `cells` into the record of a version.

    What goes wrong on the way, instead of in a canvas, has no digest.
    """
    now = canvases()
    record = {row: entry for row, entry in read(version).items() if entry["canvas"] == now.get(row)}
    for (row, backend, half), outcome in sorted(cells.items()):
        if half == "stock":
            entry = record.setdefault(row, {"canvas": now.get(row), "outcomes": {}})
            seen = entry["outcomes"].setdefault(backend, [])
            seen[:] = sorted({*seen, outcome})
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(dict(sorted(record.items())), indent=1)
    (FOLDER / f"{version}.json").write_text(f"{text}\n", encoding="utf-8")
    read.cache_clear()
