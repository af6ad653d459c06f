"""The ledger's tables in Django's database: a row for each live chord, until it has ended.

How it ended is kept until ``celery.backend_cleanup`` finds that its results have expired.

They mean what those of :mod:`chordguard.ledger.tables` mean. Code writes them through
:mod:`chordguard.ledger.django` alone.
"""

from __future__ import annotations

from django.db import models

__all__ = ("CountedMember", "Counter", "EndedChord", "LiveChord")

#: How long the id of a chord or of a task may be, in characters.
ID_LENGTH = 155


class LiveChord(models.Model):  # type: ignore[misc]
    """A chord that has started and not ended. Times are Unix times."""

    id = models.CharField(max_length=ID_LENGTH, primary_key=True)
    #: The id of the result that its body gives.
    body_id = models.CharField(max_length=ID_LENGTH, null=True)
    #: How many members it has; None until those of a generator are known.
    size = models.IntegerField(null=True)
    #: How many of them were counted on this row, and how many of those failed.
    returned = models.IntegerField()
    failed = models.IntegerField()
    #: How many rows of `Counter` count its members; 0: this row does.
    counters = models.IntegerField()
    created = models.FloatField()
    #: When the last member was counted on this row, or the chord started.
    progressed = models.FloatField()
    #: When the watchdog checks it next.
    due = models.FloatField()
    #: Who ends it, by a token, and until when.
    claimed_by = models.CharField(max_length=36, null=True)
    claimed_until = models.FloatField()
    #: The members' ids, packed; the packed signatures of its body and, if kept, of its members.
    header = models.TextField(null=True)
    body = models.BinaryField(null=True)
    signatures = models.BinaryField(null=True)

    class Meta:
        """A live chord is looked for when it is due, or by its body."""

        verbose_name = "live chord"
        default_permissions = ("view",)
        permissions = (
            ("repair_livechord", "Can repair live chords"),
            ("settle_livechord", "Can settle live chords"),
            ("revoke_livechord", "Can revoke live chords"),
        )
        indexes = (
            models.Index(fields=["due"], name="chordguard_due"),
            models.Index(fields=["body_id"], name="chordguard_body"),
        )

    def __str__(self) -> str:
        return str(self.id)


class CountedMember(models.Model):  # type: ignore[misc]
    """A member of a live chord that was counted."""

    chord_id = models.CharField(max_length=ID_LENGTH)
    task_id = models.CharField(max_length=ID_LENGTH)
    #: Its result, encoded, if that is stored nowhere else.
    payload = models.BinaryField(null=True)
    #: Which attempt to count it inserted the row: no other one counts it.
    attempt = models.CharField(max_length=32)

    class Meta:
        """A member is counted once."""

        default_permissions = ()
        constraints = (
            models.UniqueConstraint(fields=["chord_id", "task_id"], name="chordguard_member"),
        )

    def __str__(self) -> str:
        return str(self.task_id)


class Counter(models.Model):  # type: ignore[misc]
    """Counts some of the members of a large chord (see :mod:`chordguard.ledger.counters`)."""

    chord_id = models.CharField(max_length=ID_LENGTH)
    number = models.IntegerField()
    expected = models.IntegerField()
    returned = models.IntegerField()
    failed = models.IntegerField()
    progressed = models.FloatField()

    class Meta:
        """A chord has one counter of each number."""

        default_permissions = ()
        constraints = (
            models.UniqueConstraint(fields=["chord_id", "number"], name="chordguard_counter_no"),
        )

    def __str__(self) -> str:
        return f"{self.chord_id} {self.number}"


class EndedChord(models.Model):  # type: ignore[misc]
    """How a chord ended. Times are Unix times."""

    id = models.CharField(max_length=ID_LENGTH, primary_key=True)
    body_id = models.CharField(max_length=ID_LENGTH, null=True)
    size = models.IntegerField(null=True)
    returned = models.IntegerField()
    failed = models.IntegerField()
    outcome = models.CharField(max_length=16)
    created = models.FloatField()
    ended = models.FloatField()

    class Meta:
        """A chord that has ended is looked for by its body, too."""

        default_permissions = ()
        indexes = (models.Index(fields=["body_id"], name="chordguard_ended_body"),)

    def __str__(self) -> str:
        return str(self.id)
