"""The ledger of a project that stores its results with django-celery-results.

Its tables are the models of the Django app ``chordguard.django``; it works on Django's own
connections, in the database that the project's routers choose for them. What is written of the SQL
ledger (:mod:`.sql`) holds here: a part is one transaction, a large chord is counted on several
rows. All statements are Django's, which does not tell whether an insert that passes over a row was
one: a part is counted only while the member's row is that of the same attempt.

Locks. A part writes the member's result, then the member's row, then the row that counts: all
transactions do so in that order. A retry of a whole transaction is an attempt of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db.models import (
    CharField,
    Exists,
    F,
    FloatField,
    Max,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
)

from ..upstream import django as upstream
from ..upstream.results import chunks
from . import claims, counters
from .checked import header_in
from .claims import new_token
from .django_rows import DjangoRows, is_free
from .model import ChordUnknown, Claim, Part, Record
from .packing import Header, joined, leaf_ids, pack
from .rows import LedgerOfRows, record_of_row
from .tallies import End

__all__ = ("DjangoLedger",)


class DjangoLedger(DjangoRows, LedgerOfRows):
    """The live chords of one project.

    Arguments:
        backend: The `DatabaseBackend` of django-celery-results.

    Its methods raise what Django raises, after retries.
    """

    tallies_at_once = 200

    @property
    def has_safety_net(self) -> bool:
        return True

    def open(
        self,
        group_id: str,
        header: Header | None,
        body: bytes | None,
        due: float,
        timeout: float | None,
        signatures: bytes | None = None,
        body_id: str | None = None,
    ) -> None:
        now = time.time()
        ids = set(leaf_ids(header or ()))
        chord = self.chord_model(
            id=group_id,
            body_id=body_id,
            size=None if header is None else len(ids),
            returned=0,
            failed=0,
            counters=self._how_many(ids),
            created=now,
            progressed=now,
            due=due,
            claimed_until=0.0,
            header=None if header is None else pack(header),
            body=body,
            signatures=signatures,
        )

        def open_chord() -> None:
            with self._transaction():
                self._insert_counters(group_id, ids, chord.counters)
                self._insert_new(self.chord_model, [chord])

        self._retried(open_chord)

    def write_header(self, group_id: str, more: Header, *, is_all: bool) -> bool:
        def write() -> bool:
            now = time.time()
            with self._transaction():
                chord = self._chord(group_id)
                # It locks the row, so that nobody else changes the header.
                if not chord.filter(is_free(now)).update(progressed=now):
                    return False
                size, number, text = chord.values_list("size", "counters", "header").get()
                known = header_in(text) or []
                # What members that run have added may come before the others are known.
                header = joined(more, known) if is_all else joined(known, more)
                ids = set(leaf_ids(header))
                changes: dict[str, Any] = {"header": pack(header)}
                if number:
                    self._expect_more(group_id, ids - set(leaf_ids(known)), number)
                elif size is None and is_all and (number := self._how_many(ids)):
                    done = self._members(group_id).values_list("task_id", flat=True)
                    self._insert_counters(group_id, ids, number, list(done))
                    changes.update(counters=number, returned=0)
                changes["size"] = len(ids) if is_all or size is not None else None
                chord.update(**changes)
            return True

        return self._retried(write)

    def count(self, group_id: str, part: Part, token: str | None = None) -> Claim | None:
        token = token or new_token()
        try:
            return self._retried(lambda: self.store_and_count(group_id, part, None, token))
        except ChordUnknown:
            return None

    def store_and_count(
        self,
        group_id: str,
        part: Part,
        store: Callable[[], None] | None,
        token: str | None = None,
    ) -> Claim | None:
        """Count a part in the transaction that stores its result; not retried here.

        Arguments:
            group_id: The chord.
            part: The member.
            store: Stores its result, in the same database.
            token: That of the claim, which may have been given to an earlier attempt.

        Returns:
            As `count`.

        Raises:
            ChordUnknown: The chord is not here, or not yet. The result is stored.
        """
        token = token or new_token()
        counted = self._count(group_id, part, store, token)
        if counted is None:
            raise ChordUnknown(f"chord {group_id} is not in the ledger")
        if counted.is_full:
            return self._claim_if_whole(group_id, token)
        return Claim(group_id, token, header_in(counted.header)) if counted.is_claimed else None

    def _claim_if_whole(self, group_id: str, token: str) -> Claim | None:
        """Claim a chord that is spread if all its counters are full.

        The part that filled the last one is committed: whoever comes last sees all the others.
        """
        unfilled = self._counters(OuterRef("pk")).filter(returned__lt=F("expected"))
        return self._claim(group_id, token, is_free(time.time()), ~Exists(unfilled))

    def group_ids(self) -> list[str]:
        return self._retried(lambda: list(self.chords().values_list("pk", flat=True)))

    @property
    def unreachable(self) -> tuple[type[Exception], ...]:
        return upstream.errors()

    def rows_of(self, group_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        return self._records("header", "body", pk__in=group_ids)

    def overview(self) -> list[Record]:
        nothing = Value(None, output_field=CharField())
        return [record_of_row(row)[0] for row in self._records(nothing, nothing)]

    def _records(self, header: Any, body: Any, **condition: Any) -> list[tuple[Any, ...]]:
        """Return what :func:`.rows.record_of_row` reads of chords that meet a condition."""
        columns = ("id", "size", "created", "claimed_until", header, body)
        counted = ("returned", "failed", "progressed", *self._added())
        rows = self.chords().filter(**condition).values_list(*columns, *counted)
        return self._retried(lambda: list(rows.all()))

    def _added(self) -> list[Any]:
        """Return what the counters of a chord, if it has some, add to what its row tells."""
        counted = self._counters(OuterRef("pk")).values("chord_id")
        return [
            Subquery(counted.annotate(added=total).values("added"))
            for total in (Sum("returned"), Sum("failed"), Max("progressed"))
        ]

    def note_progress(self, group_id: str, since: float) -> None:
        self._write(self._chord(group_id), progressed=since)

    def signatures(self, group_id: str) -> bytes | None:
        found = self._chord(group_id).values_list("signatures", flat=True)
        packed = self._retried(lambda: found.all().first())
        return None if packed is None else bytes(packed)

    def counted_in(self, group_ids: Sequence[str]) -> dict[str, set[str]]:
        counted: dict[str, set[str]] = {group_id: set() for group_id in group_ids}
        for chunk in chunks(group_ids):
            rows = self.members().filter(chord_id__in=chunk).values_list("chord_id", "task_id")
            for group_id, task_id in self._retried(lambda: list(rows.all())):  # noqa: B023
                counted[group_id].add(task_id)
        return counted

    def plain_members(self, group_id: str) -> set[str]:
        plain = self._members(group_id).filter(payload=None).values_list("task_id", flat=True)
        return self._retried(lambda: set(plain.all()))

    def has(self, group_id: str) -> bool:
        """Tell whether a chord is live here; cheaper than to read it."""
        return self._retried(lambda: bool(self._chord(group_id).exists()))

    def counted(self, group_id: str) -> set[str]:
        """Return the ids of the members that were counted."""
        return self.counted_in([group_id])[group_id]

    def payloads(self, group_id: str) -> Mapping[str, bytes]:
        brought = self._members(group_id).exclude(payload=None).values_list("task_id", "payload")
        return self._retried(lambda: {id_: bytes(payload) for id_, payload in brought.all()})

    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        token = token or new_token()
        is_ours = is_free(time.time()) | Q(claimed_by=token)
        return self._retried(lambda: self._claim(group_id, token, is_ours))

    def _claim(self, group_id: str, token: str, *conditions: Any) -> Claim | None:
        until = time.time() + claims.CLAIM_SECONDS
        values = {"claimed_by": token, "claimed_until": until, "due": until}
        with self._transaction():
            if not self._chord(group_id).filter(*conditions).update(**values):
                return None
            packed = self._chord(group_id).values_list("header", flat=True).first()
        return Claim(group_id, token, header_in(packed))

    def renew(self, claim: Claim) -> bool:
        until = time.time() + claims.CLAIM_SECONDS
        mine = self._claimed(claim.group_id, claim.token)
        return self._write(mine, claimed_until=until, due=until)

    def release(self, claim: Claim) -> None:
        values = {"claimed_by": None, "claimed_until": 0.0, "due": time.time()}
        self._write(self._claimed(claim.group_id, claim.token), **values)

    def expire(self, is_gone: Callable[[str], bool]) -> int:
        now = time.time()
        # A chord that is claimed is due when the claim ends, at the latest.
        claimed = self.chords().filter(
            due__lte=now + claims.CLAIM_SECONDS + 1, claimed_until__gt=now
        )
        found = self._retried(lambda: list(claimed.values_list("pk", "claimed_by")))
        # A row that is damaged may be claimed by nobody.
        gone = [(group_id, token) for group_id, token in found if token and is_gone(token)]
        return sum(
            self._write(self._claimed(group_id, token), claimed_until=now, due=now)
            for group_id, token in gone
        )

    def close(self, group_id: str, end: End | None = None) -> None:
        # What counts goes first, each in a transaction: a part that is counted meanwhile is seen by
        # the last one, one that comes later finds nothing to count on and takes its member back.
        is_large = counters.known(group_id) > 0
        if is_large or not self._remove_chord(group_id, end, is_small=True):
            self._remove_chord(group_id, end, is_small=False)
            self._remove(self._counters(group_id))
        self._remove(self._members(group_id))

    def live_members(self) -> Any:
        """Return what selects the ids of all members that live chords counted."""
        ids = self.members().values_list("task_id", flat=True)
        return ids if self.shares_database else list(ids)

    def abandoned(self, before: float) -> list[str]:
        old = self.chords().filter(progressed__lt=before).values_list("pk", flat=True)
        return self._retried(lambda: list(old))

    def remove_orphans(self) -> None:
        live = self.chords().filter(pk=OuterRef("chord_id"))
        orphans = self.members().filter(~Exists(live)).values_list("chord_id", flat=True)
        for group_id in self._retried(lambda: list(orphans.distinct())):
            self._remove(self._members(group_id))

    def forget_ended(self, before: float) -> None:
        """Forget how chords ended that did so before then (Unix time)."""
        self._remove(self.ends().filter(ended__lt=before))

    def tally_rows(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        names = ("id", "body_id", "size", "returned", "failed", "created")
        nothing = Value(None, output_field=FloatField())
        no_outcome = Value(None, output_field=CharField())
        live = self.chords().values_list(*names, "progressed", no_outcome, *self._added())
        gone = self.ends().values_list(*names, "ended", "outcome", nothing, nothing, nothing)
        # Each of them has an index; for an OR some databases use none.
        by_id, *others = (
            rows.filter(**{f"{column}__in": ids})
            for rows in (live, gone)
            for column in ("id", "body_id")
        )
        return self._retried(lambda: list(by_id.union(*others, all=True)))

    def take_due(self, now: float, until: float, limit: int) -> list[str]:
        due = self.chords().filter(due__lte=now).order_by("due").values_list("pk", "due")
        found = self._retried(lambda: list(due[:limit]))
        return [
            id_ for id_, seen in found if self._write(self._chord(id_).filter(due=seen), due=until)
        ]

    def look_again(self, group_id: str, due: float) -> str | None:
        self._write(self._chord(group_id), due=due)
        return None
