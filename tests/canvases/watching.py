"""Watch how far the chords of canvases are, from their start to their end."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import states

from chordguard import signals
from chordguard.ledger.access import required_ledger
from chordguard.ledger.packing import leaf_ids
from chordguard.upstream.results import ready_states
from tests.harness import wait_until

if TYPE_CHECKING:
    from chordguard.ledger.tallies import Tally
    from tests.harness import Cluster

#: Seconds in which a chord whose body has run is noted to have ended.
SOON = 10.0


class Watch:
    """Looks at all chords of a cluster again and again.

    Attributes:
        wrong: What was told of a chord that cannot be right, in sentences.
        seen: The chords, with the last thing that was told of each.
        looks: How often something was told of a live chord.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._ledger = required_ledger(cluster.app)
        self.wrong: list[str] = []
        self.seen: dict[str, Tally | None] = {}
        self.looks = 0
        self._headers: dict[str, set[str]] = {}

    def look(self) -> None:
        """Compare what is told of each chord with what was told before."""
        for group_id in self._ledger.group_ids():
            self.seen.setdefault(group_id, None)
        for group_id, record in self._ledger.read_all([*self.seen]).items():
            if record.header is not None:
                self._headers[group_id] = set(leaf_ids(record.header))
        for group_id, tally in self._ledger.progress([*self.seen]).items():
            self.looks += tally.outcome is None
            self._compare(self.seen[group_id], tally)
            self.seen[group_id] = tally

    def _compare(self, before: Tally | None, now: Tally) -> None:
        problems = []
        if not 0 <= now.failed <= now.returned:
            problems.append("more failed than are done")
        if now.size is not None and now.returned > now.size:
            problems.append("more are done than there are")
        if before is not None:
            numbers = [(before.returned, now.returned), (before.failed, now.failed)]
            numbers.append((before.size or 0, now.size or 0))
            if any(old > new for old, new in numbers):
                problems.append("a number falls")
            if before.outcome is not None and now.outcome != before.outcome:
                problems.append("its end changes")
        self.wrong += [f"{problem}: {before}, then {now}" for problem in problems]

    def end(self) -> None:
        """Compare what is told of chords that have ended with the results of their members."""
        with suppress(AssertionError):
            wait_until(lambda: not {*self._ledger.group_ids()} & {*self.seen}, SOON, "their ends")
        self.look()
        backend = self._ledger.backend
        ids = [task_id for header in self._headers.values() for task_id in header]
        ready = ready_states(backend, ids)
        for group_id, tally in self.seen.items():
            problem = _problem_of(tally, self._headers.get(group_id), ready)
            if problem:
                self.wrong.append(f"{problem}: {tally}")


def _problem_of(tally: Tally | None, header: set[str] | None, ready: Any) -> str | None:
    if tally is None or tally.outcome is None:
        return "its end is not known"
    if tally.returned != tally.size:
        return "not all are done at its end"
    outcomes = {signals.SUCCEEDED: tally.failed == 0, signals.TOLERATED: tally.failed > 0}
    if not outcomes.get(tally.outcome, True):
        return "its outcome is another one"
    if header is None:
        return None
    if tally.size != len(header):
        return f"it has {len(header)} members"
    failed = sum(ready.get(task_id) in states.PROPAGATE_STATES for task_id in header)
    # What members with `ignore_result` gave, or that raised `Ignore`, is not stored.
    unknown = sum(task_id not in ready for task_id in header)
    if not failed <= tally.failed <= failed + unknown:
        return f"{failed} members failed"
    if tally.created > time.time() or tally.progressed < tally.created - 1:
        return "its times are wrong"
    return None
