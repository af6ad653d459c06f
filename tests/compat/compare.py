"""Compare runs of Celery's own tests: ``python compare.py STOCK.xml PATCHED.xml OFF.xml``.

Each is a JUnit file that pytest wrote. A test that fails only with the patches is a defect of
ours, unless it looks for the calls inside of a function that a patch replaces: those that do are
listed here, and have to pass in the third run, in which these patches (``REPLACING``) are off. One
that fails only without patches is a defect of Celery's that they mend.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

#: The patches that replace a function of Celery's rather than add to it.
REPLACING = ("counted_parts", "tolerant_parts", "chord_failures")

#: How the names of tests begin that look inside of such a function.
LOOK_INSIDE = (
    "t.unit.backends.test_redis.test_RedisBackend::test_add_to_chord",
    "t.unit.backends.test_redis.test_RedisBackend::test_set_chord_size",
    "t.unit.backends.test_redis.test_RedisBackend_chords_simple::test_extended_claim",
    "t.unit.backends.test_redis.test_RedisBackend_chords_simple::test_on_chord_part_return",
    "t.unit.backends.test_redis.test_RedisBackend_chords_complex::test_on_chord_part_return",
    "t.unit.backends.test_base.test_BaseBackend_dict::test_chord_error_from_stack_fails_the_chain",
)


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


def main(stock: Path, patched: Path, without: Path) -> int:
    before, after, off = outcomes(stock), outcomes(patched), outcomes(without)
    worse = inside = 0
    for test in sorted({*before, *after}):
        if before.get(test) == after.get(test):
            continue
        if test.startswith(LOOK_INSIDE) and off.get(test) == before.get(test):
            inside += 1
            continue
        print(f"{test}: {before.get(test)} -> {after.get(test)}, {off.get(test)} with them off")
        worse += after.get(test) not in ("passed", "passed though expected to fail")
    print(
        f"{len(after)} tests, {worse} of them fail with the patches only; {inside} look inside of "
        f"what {' and '.join(REPLACING)} replace, and do the same with these off"
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
