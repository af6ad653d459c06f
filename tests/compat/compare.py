"""Compare two runs of Celery's own tests: ``python compare.py STOCK.xml PATCHED.xml``.

Each is a JUnit file that pytest wrote. A test that fails only with the patches is a defect of
ours; one that fails only without them is a defect of Celery's that they mend.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def outcomes(path: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        failed = [child for child in case if child.tag in ("failure", "error")]
        skipped = [child for child in case if child.tag == "skipped"]
        outcome = "failed" if failed else "skipped" if skipped else "passed"
        if failed and "XPASS" in (failed[0].get("message") or failed[0].text or ""):
            outcome = "passed though expected to fail"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def main(stock: Path, patched: Path) -> int:
    before, after = outcomes(stock), outcomes(patched)
    worse = 0
    for test in sorted({*before, *after}):
        if before.get(test) != after.get(test):
            print(f"{test}: {before.get(test)} -> {after.get(test)}")
            worse += after.get(test) not in ("passed", "passed though expected to fail")
    print(f"{len(after)} tests, {worse} of them fail with the patches only")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
