"""What chordguard tells an application, as Celery's signals do.

    from chordguard.signals import chord_settled

    @chord_settled.connect
    def tell(sender, group_id, reason, **kwargs): ...

The sender is the app. They are sent where it happens: in the worker that ends the chord.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ("chord_failed", "chord_repaired", "chord_settled")

#: A chord failed: its body never runs. Arguments: ``body`` (signature), ``exception``.
chord_failed = Signal(name="chord_failed", providing_args={"body", "exception"})

#: A chord was mended. Arguments: ``group_id``, ``reason``, ``action``.
chord_repaired = Signal(name="chord_repaired", providing_args={"group_id", "reason", "action"})

#: A chord was ended before its members were done. Arguments: as for `chord_repaired`.
chord_settled = Signal(name="chord_settled", providing_args={"group_id", "reason", "action"})
