"""Why a chord ends before all of its members are done."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ("Settlement",)


@dataclass(frozen=True)
class Settlement:
    """The reason for which a chord is settled, and how that is worded.

    Attributes:
        why: A phrase that follows "was settled".
        notes: What else the error of the chord should name.
    """

    why: str
    notes: tuple[str, ...] = ()

    @classmethod
    def by_request(cls) -> Settlement:
        """Say that an operator has revoked the chord."""
        return cls("by request")

    @classmethod
    def overdue(cls, idle: float, timeout: float) -> Settlement:
        """Say that no member returned for longer than `timeout`; both are seconds."""
        return cls(f"after {idle:.1f} seconds without progress (chord_timeout = {timeout:g})")

    @classmethod
    def polled_out(cls, polls: int, bound: int) -> Settlement:
        """Say that `celery.chord_unlock` was retried as often as it may be."""
        return cls(f"after {polls} polls (the bound is {bound} retries)")

    @classmethod
    def because(cls, evidence: str) -> Settlement:
        """Say that the `evidence`, a sentence, proves that members are lost."""
        return cls(f"since {evidence}")

    def noting(self, *notes: str) -> Settlement:
        """Return the same settlement with further `notes`."""
        return replace(self, notes=(*self.notes, *notes))

    def __str__(self) -> str:
        return "; ".join((self.why, *self.notes))

    def sentence(self, group_id: str) -> str:
        """Return the sentence with which the error of a settled chord begins."""
        return f"Chord {group_id} was settled {self}"
