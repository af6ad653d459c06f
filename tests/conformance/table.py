"""Print the conformance table: ``python -m tests.conformance.table FOLDER``.

The folder holds a file for each Celery version that was run, as `save` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: A right cell is quiet, all others are to be seen.
MARKS = {"right": "ok"}


def save(folder: str, cells: Mapping[tuple[str, str, str], str]) -> None:
    import celery

    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = [[*key, outcome] for key, outcome in cells.items()]
    (Path(folder) / f"{celery.__version__}.json").write_text(json.dumps(rows, indent=1))


def rendered(columns: Mapping[str, Mapping[tuple[str, str, str], str]]) -> Iterable[str]:
    """Yield the lines of the table: a row for each scenario and backend, stock then patched."""
    rows = sorted({key[:2] for cells in columns.values() for key in cells})
    if not rows:
        return
    width = max(len(row) for row, _ in rows)
    yield f"{'':{width}} {'backend':10} " + " ".join(f"{name:>16}" for name in columns)
    for row, backend in rows:
        texts = []
        for cells in columns.values():
            pair = [cells.get((row, backend, half), "-") for half in ("stock", "patched")]
            texts.append(" > ".join(MARKS.get(cell, cell) for cell in pair))
        yield f"{row:{width}} {backend:10} " + " ".join(f"{text:>16}" for text in texts)


def main(folder: str) -> int:
    files = sorted(Path(folder).glob("*.json"), key=lambda path: path.stem)
    columns = {
        f"Celery {path.stem}": {
            (row, backend, half): outcome
            for row, backend, half, outcome in json.loads(path.read_text())
        }
        for path in files
    }
    print("Each cell: stock > patched")
    print("\n".join(rendered(columns)))
    wrong = [
        f"{column}: {row} on {backend}: {outcome}"
        for column, cells in columns.items()
        for (row, backend, half), outcome in cells.items()
        if half == "patched" and outcome != "right"
    ]
    patched = sum(half == "patched" for cells in columns.values() for _, _, half in cells)
    print(f"{patched - len(wrong)} of {patched} patched cells are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
