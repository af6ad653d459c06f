"""The Django app: the ledger of chords for projects that store results with django-celery-results.

Put ``"chordguard.django"`` into ``INSTALLED_APPS`` and run ``manage.py migrate``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction

__all__ = ("apply_on_commit",)


def apply_on_commit(chord: Any, *, using: str | None = None, **options: Any) -> Any:
    """Start a chord when the transaction at hand is committed, and never if it is rolled back.

    Outside of a transaction it starts at once. A chord that is started by `apply_async` within a
    transaction ends, too; but its members run at once, and do not see what the transaction writes.

    Arguments:
        chord: The chord, or another canvas.
        using: The database of the transaction; None: the default one.
        options: Those of `apply_async`.

    Returns:
        The result of the chord.
    """
    result = chord.freeze(options.pop("task_id", None))
    transaction.on_commit(partial(chord.apply_async, **options), using=using)
    return result
