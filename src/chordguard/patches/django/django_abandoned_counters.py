"""Django: the counters of chords that never ended are kept for ever.

A row of `ChordCounter` has no date, and `celery.backend_cleanup` leaves it. Here it goes when the
results of its chord would: a member had a result long ago, and none has a newer one. So does a row
that was made before such a one, as its id tells, if no member has a result at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from celery.result import result_from_tuple
from celery.utils.time import maybe_timedelta

from ...engine.patch import Defect, Patch
from ...ledger.packing import header_of, leaf_ids
from ...log import warn_once
from ...upstream.results import chunks

logger = logging.getLogger("chordguard")

patch = Patch(
    "django_abandoned_counters",
    Defect("J11", "Django: counters of chords that never ended are kept for ever"),
    driver="django_celery_results",
)


@patch.wraps("django_celery_results.backends.database", "DatabaseBackend.cleanup")
def cleanup(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    if backend.expires:
        try:
            # Before the results go that tell of it.
            _forget_abandoned(backend)
        except Exception:  # noqa: BLE001 - it is logged
            warn_once("Could not delete abandoned counters of chords")
    return wrapped(*args, **kwargs)


def _forget_abandoned(backend: Any) -> None:
    from django.utils import timezone
    from django_celery_results.models import ChordCounter

    from ...upstream import django

    before = timezone.now() - maybe_timedelta(backend.expires)
    counters = ChordCounter.objects.using(django.alias_of(ChordCounter))
    old: list[int] = []
    without: list[int] = []
    for counter in counters.order_by("pk").iterator(chunk_size=100):
        dates = list(_dates(backend, counter))
        if not dates:
            without.append(counter.pk)
        elif max(dates) < before:
            old.append(counter.pk)
    oldest_kept = max(old, default=0)
    abandoned = [*old, *(pk for pk in without if pk < oldest_kept)]
    for chunk in chunks(abandoned):
        counters.filter(pk__in=chunk).delete()
    if abandoned:
        logger.info("Deleted %d abandoned counters of chords", len(abandoned))


def _dates(backend: Any, counter: Any) -> Iterator[Any]:
    """Yield when each member of a chord stored what it stored last."""
    from ...upstream import django

    results = [result_from_tuple(data, app=backend.app) for data in json.loads(counter.sub_tasks)]
    for chunk in chunks(list(leaf_ids(header_of(results)))):
        for (date,) in django.select_rows(backend, ("date_done",), chunk):
            yield date
