"""`completed_count()` of a chord's header reads the result of every member.

`ResultSet.completed_count` asks each result for its state, one read for each: a progress bar over
10,000 members costs 10,000 reads a look. Here the ledger answers for the header of a live chord,
in one round trip: the members that are done and did not fail.
https://github.com/celery/celery/issues/10514
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...errors import OUTSIDE
from ...ledger.access import ledger_of
from ...log import warn_once

patch = Patch(
    "counted_progress",
    Defect("C11", "completed_count() of a chord's header reads every member's result"),
    backends=(REDIS, SQL, DJANGO),
    needs_ledger=True,
)


@patch.wraps("celery.result", "ResultSet.completed_count")
def completed_count(wrapped: Any, results: Any, args: Any, kwargs: Any) -> Any:
    counted = _counted(results)
    return wrapped(*args, **kwargs) if counted is None else counted


def _counted(group: Any) -> int | None:
    """Return how many members did well, where the group is the header of a live chord."""
    group_id = getattr(group, "id", None)
    if group_id is None or any(getattr(r, "results", None) is not None for r in group.results):
        # The ledger counts the tasks of a group among them, Celery the group.
        return None
    ledger = ledger_of(group.app.backend, is_read=True)
    if ledger is None:
        return None
    try:
        tally = ledger.progress([group_id]).get(group_id)
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot read the progress of chord %s; reading its members' results", group_id)
        return None
    if tally is None or tally.outcome is not None or tally.size != len(group.results):
        return None
    return int(tally.returned - tally.failed)
