"""Django: chords on django-celery-results hang, since a counter is all that is known of them.

`DatabaseBackend` counts a chord down on a row of `ChordCounter`, in another transaction than the
one that stores a result, whoever returns the part. A member that runs twice counts twice; one whose
worker is killed between the two never counts; one that returns before the transaction in which the
chord was started is committed finds no row. The last part deletes the row, then publishes the body.
Here the chord is opened in the ledger, in the same transaction as what starts it, and counted there
as on any other SQL database. When that transaction is committed, what returned before is counted.
https://github.com/celery/django-celery-results/issues/397
https://github.com/celery/django-celery-results/issues/183
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from ...engine.patch import Defect, Patch
from ...errors import OUTSIDE
from ...ledger.access import ledger_beside
from ...ledger.checked import body_of
from ...lifecycle import counting
from ...log import warn_once
from ..database import counted_chords

logger = logging.getLogger("chordguard")

patch = Patch(
    "django_counted_chords",
    Defect("J1", "Django: a member that runs twice is counted twice, the body never runs"),
    Defect("J2", "Django: a worker dies between storing and counting a result: the chord hangs"),
    Defect("J3", "Django: a worker dies before it publishes the body: the chord hangs"),
    Defect(
        "J4",
        "Django: a member returns before the transaction that starts its chord is committed: the "
        "chord hangs",
        only_on=("postgresql", "sqlite", "oracle"),
    ),
    Defect("J6", "Django: a chord that is started again raises IntegrityError"),
    Defect("J7", "Django: add_to_chord raises NotImplementedError"),
    driver="django_celery_results",
    needs_ledger=True,
)

MODULE = "django_celery_results.backends.database"


@patch.wraps(MODULE, "DatabaseBackend.apply_chord", takes={"header_result_args": 0, "body": 1})
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    from django.db import connections, transaction

    ledger = ledger_beside(backend)
    if ledger is not None and connections[ledger.alias].in_atomic_block:
        group_id, _ = header_result_args
        transaction.on_commit(partial(_catch_up, backend, group_id), using=ledger.alias)
    return counted_chords.apply_chord(
        wrapped, backend, args, kwargs, header_result_args=header_result_args, body=body
    )


def _catch_up(backend: Any, group_id: str) -> None:
    """Count the members that returned when nobody could see their chord."""
    try:
        ledger = ledger_beside(backend)
        record = None if ledger is None else ledger.read(group_id)
        if record is None or record.header is None or record.body is None:
            return
        results = ledger.outstanding({group_id: record.header})[group_id].uncounted
        if results:
            body, _ = body_of(backend.app, record.body)
            counting.catch_up(ledger, group_id, record.header, results, body)
    except OUTSIDE:
        raise
    except Exception:  # noqa: BLE001 - it is logged: what was committed stays so
        warn_once("Chord %s may end late: the watchdog will count its members", group_id)


@patch.wraps(MODULE, "DatabaseBackend.store_result", takes={"task_id": 0, "state": 2, "request": 4})
def store_result(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, task_id: Any, state: Any, request: Any
) -> Any:
    is_member = request is not None and bool(request.chord)
    ledger = ledger_beside(backend) if is_member else None
    if ledger is None or not ledger.shares_database:
        return wrapped(*args, **kwargs)
    return counted_chords.store_result(
        wrapped, backend, args, kwargs, task_id=task_id, state=state, request=request
    )


@patch.wraps(
    MODULE,
    "DatabaseBackend.on_chord_part_return",
    takes={"request": 0, "state": 1, "result": 2},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any, state: Any, result: Any
) -> Any:
    if request.group and request.id:
        if counting.is_counted(request):
            return
        ledger = ledger_beside(backend)
        if _count(ledger, request, state, result):
            return
        is_ignored = counting.is_ignored(backend.app, request)
        # Without a counter, which it would warn of, the start of the chord is not committed yet.
        if ledger is None or is_ignored or _has_counter(request.group):
            wrapped(*args, **kwargs)
        if is_ignored:
            # Its result is stored now, but for that it was not counted by who commits the start.
            _count(ledger, request, state, result)


def _has_counter(group_id: str) -> bool:
    """Tell whether a process without the patches has started the chord."""
    from django_celery_results.models import ChordCounter

    return bool(ChordCounter.objects.filter(group_id=group_id).exists())


def _count(ledger: Any, request: Any, state: Any, result: Any) -> bool:
    """Count a part that was not counted when its result was stored; tell whether it is ours."""
    if ledger is None:
        return False
    try:
        is_here = bool(ledger.has(request.group))
    except Exception:  # noqa: BLE001 - it is logged
        warn_once("Cannot read chord %s; the watchdog will count its members", request.group)
        return True
    if is_here:
        counting.count(ledger, request, state, result)
    return is_here


patch.wraps(MODULE, "DatabaseBackend.set_chord_size", takes={"group_id": 0})(
    counted_chords.set_chord_size
)
patch.wraps(MODULE, "DatabaseBackend.add_to_chord", takes={"chord_id": 0, "result": 1})(
    counted_chords.add_to_chord
)
patch.wraps(MODULE, "DatabaseBackend.cleanup")(counted_chords.cleanup)
