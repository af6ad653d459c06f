"""Run the Python of a page, in its order: ``python tests/docs/run_page.py PAGE``.

It runs in the folder of the project that the page imports. What a session shows is compared as
doctest does.
"""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def main(page: Path) -> int:
    """Return how many blocks ran; fail at the first that does not."""
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    found = re.findall(r"^```(python|pycon)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for number, (language, block) in enumerate(found):
        if language == "python" and block.startswith("# proj/"):
            continue  # a file of another project
        if language == "python":
            exec(compile(block, f"{page.name} {number}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), number)
        if runner.run(test, clear_globs=False).failed:
            sys.exit(f"{page.name}: block {number} prints something else")
        names = test.globs
    return len(found)


if __name__ == "__main__":
    sys.path.insert(0, "")
    print(main(Path(sys.argv[1])), "blocks")
