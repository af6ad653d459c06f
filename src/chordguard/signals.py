"""What chordguard tells an application, as Celery's signals do.

    from .signals import chord_settled

    @chord_settled.connect
    def tell(sender, group_id, reason, **kwargs): ...

The sender is the app. They are sent where it happens: in the worker that ends the chord.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ("chord_ended", "chord_failed", "chord_repaired", "chord_settled")

#: The outcomes of a chord: its body was published, all members did well;
SUCCEEDED = "succeeded"
#: its body was published although members failed;
TOLERATED = "tolerated"
#: its body never runs.
FAILED = "failed"

OUTCOMES = (SUCCEEDED, TOLERATED, FAILED)

#: A chord ended. Arguments: ``group_id``, ``outcome`` (one of `OUTCOMES`), ``errors`` (how many
#: members failed or were lost), ``seconds`` (since it started; None where that is not known).
#: One that Celery alone ends, without the ledger or in a worker without the patches, is not told.
chord_ended = Signal(
    name="chord_ended", providing_args={"group_id", "outcome", "errors", "seconds"}
)

#: A chord failed: its body never runs. Arguments: ``body`` (signature), ``exception``.
chord_failed = Signal(name="chord_failed", providing_args={"body", "exception"})

#: A chord was mended. Arguments: ``group_id``, ``reason``, ``action``.
chord_repaired = Signal(name="chord_repaired", providing_args={"group_id", "reason", "action"})

#: A chord was ended before its members were done. Arguments: as for `chord_repaired`.
chord_settled = Signal(name="chord_settled", providing_args={"group_id", "reason", "action"})
