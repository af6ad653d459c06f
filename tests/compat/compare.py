"""Compare runs of Celery's own tests: ``python compare.py STOCK.xml PATCHED.xml [OFF.xml]``.

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
REPLACING = (
    "counted_parts",
    "tolerant_parts",
    "chord_failures",
    "incremented_parts",
    "counter_safety_net",
    "ignored_results",
)

#: How the names of tests begin that look inside of such a function.
LOOK_INSIDE = (
    "t.unit.backends.test_redis.test_RedisBackend::test_add_to_chord",
    "t.unit.backends.test_redis.test_RedisBackend::test_set_chord_size",
    "t.unit.backends.test_redis.test_RedisBackend_chords_simple::test_extended_claim",
    "t.unit.backends.test_redis.test_RedisBackend_chords_simple::test_on_chord_part_return",
    "t.unit.backends.test_redis.test_RedisBackend_chords_complex::test_on_chord_part_return",
    "t.unit.backends.test_base.test_BaseBackend_dict::test_chord_error_from_stack_fails_the_chain",
    "t.unit.backends.test_base.test_KeyValueStoreBackend::test_chord_part_return",
    "t.unit.backends.test_base.test_KeyValueStoreBackend::test_on_chord_part_return",
    "t.unit.backends.test_cache.test_CacheBackend::test_apply_chord",
    "t.unit.backends.test_cache.test_CacheBackend::test_chord_uses_chord_expires",
    "t.unit.backends.test_cache.test_CacheBackend::test_on_chord_part_return",
    "t.unit.backends.test_cache.test_pymemcache_integration::test_chord_with_pymemcache_signatures",
    "t.unit.backends.test_dynamodb.test_DynamoDBBackend::test_apply_chord",
    "t.unit.backends.test_gcs.test_GCSBackend::test_on_chord_part_return",
)

XPASSED = "passed though expected to fail"

#: The headings of what is listed; only the tests under the first fail the comparison.
WORSE = "Fail with the patches only"
BETTER = "Pass with the patches only"
UNEXPECTED = "Expected to fail, pass with the patches"
OTHER = "Differ otherwise"


def outcomes(path: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        failed = [child for child in case if child.tag in ("failure", "error")]
        skipped = [child for child in case if child.tag == "skipped"]
        outcome = "failed" if failed else "skipped" if skipped else "passed"
        if failed and "XPASS" in (failed[0].get("message") or failed[0].text or ""):
            outcome = XPASSED
        name = f"{case.get('classname')}::{case.get('name')}"
        # A subtest has the name of its test: one that failed is not hidden by the next.
        if found.get(name) != "failed":
            found[name] = outcome
    return found


def main(stock: Path, patched: Path, without: Path | None = None) -> int:
    before, after = outcomes(stock), outcomes(patched)
    off = outcomes(without) if without else {}
    groups: dict[str, list[str]] = {WORSE: [], BETTER: [], UNEXPECTED: [], OTHER: []}
    inside = 0
    for test in sorted({*before, *after}):
        was, now = before.get(test), after.get(test)
        if was == now:
            continue
        if test.startswith(LOOK_INSIDE) and off.get(test) == was:
            inside += 1
            continue
        line = f"{test}: {was} -> {now}"
        groups[group(was, now)].append(f"{line}, {off.get(test)} with them off" if off else line)
    for title, lines in groups.items():
        if lines:
            print(f"{title}:", *lines, sep="\n  ")
    worse = len(groups[WORSE])
    print(f"{len(after)} tests, {worse} of them fail with the patches only")
    if off:
        replaced = " and ".join(REPLACING)
        print(f"{inside} look inside of what {replaced} replace, and do the same with these off")
    if not before or not after:
        print("A run has no tests: nothing was compared")
    return 1 if worse or not before or not after else 0


def group(was: str | None, now: str | None) -> str:
    """Return the heading under which a test is listed that did not do the same in both runs."""
    if now == XPASSED:
        return UNEXPECTED
    if now == "passed":
        return BETTER
    # A test that is missing from the run with the patches counts as failed.
    return OTHER if was in ("failed", None) and now == "skipped" else WORSE


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
