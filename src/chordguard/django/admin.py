"""The admin: live chords, what is the matter with them, and what can be done about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import F, Q

from ..errors import ChordguardError
from ..ledger.access import required_ledger
from ..recovery.evidence import examine_all
from ..recovery.repair import repair
from ..recovery.requested import revoke_members, settle
from ..recovery.wording import duration
from .models import LiveChord
from .project import celery_app

__all__ = ("LiveChordAdmin",)

#: What stands in a column that cannot be told.
UNKNOWN = "?"

HOUR = 3600.0


class _Chords(ChangeList):  # type: ignore[misc]
    """A page of chords, all of them diagnosed at once."""

    result_list: Any

    def get_results(self, request: Any) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        try:
            ledger = required_ledger(celery_app())
            found = examine_all(ledger, [row.pk for row in self.result_list], is_thorough=True)
        except Exception as exc:  # noqa: BLE001 - it is told
            messages.error(request, f"Chords cannot be diagnosed: {exc}")
            return
        for row, diagnosis in zip(self.result_list, found, strict=True):
            row.diagnosis = diagnosis


class _AgeFilter(admin.SimpleListFilter):  # type: ignore[misc]
    title = "age"
    parameter_name = "age"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [("1", "over an hour"), ("24", "over a day"), ("168", "over a week")]

    def queryset(self, _: Any, rows: Any) -> Any:
        if not (self.value() or "").isdigit():
            return rows
        return rows.filter(created__lt=time.time() - int(self.value()) * HOUR)


class _StateFilter(admin.SimpleListFilter):  # type: ignore[misc]
    title = "state"
    parameter_name = "state"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [
            ("quiet", "no progress for an hour"),
            ("complete", "all members returned"),
            ("failed", "members failed"),
            ("ending", "a worker is ending it"),
        ]

    def queryset(self, _: Any, rows: Any) -> Any:
        now = time.time()
        conditions = {
            "quiet": Q(progressed__lt=now - HOUR),
            "complete": Q(counters=0, size__lte=F("returned")),
            "failed": Q(failed__gt=0),
            "ending": Q(claimed_until__gt=now),
        }
        return rows.filter(conditions.get(self.value() or "", Q()))


@admin.register(LiveChord)
class LiveChordAdmin(admin.ModelAdmin):  # type: ignore[misc]
    """Shows live chords; each action wants the permission of its name."""

    list_display = ("id", "members", "failures", "state", "age", "idle")
    list_filter = (_StateFilter, _AgeFilter)
    search_fields = ("id", "header")
    ordering = ("created",)
    actions = ("repair_chords", "settle_chords", "revoke_chords")
    fields = ("id", "members", "failures", "state", "reason", "age", "idle", "header")
    readonly_fields = fields

    def get_changelist(self, *_: Any, **__: Any) -> Any:
        """Return the class that diagnoses a page of chords."""
        return _Chords

    def get_object(self, request: Any, object_id: str, from_field: str | None = None) -> Any:
        """Return one chord, diagnosed."""
        row = super().get_object(request, object_id, from_field)
        if row is not None:
            ledger = required_ledger(celery_app())
            (row.diagnosis,) = examine_all(ledger, [row.pk], is_thorough=True)
        return row

    def has_add_permission(self, *_: Any) -> bool:
        """Say no: chords are started by code."""
        return False

    def has_change_permission(self, *_: Any) -> bool:
        """Say no: nothing of a chord can be edited."""
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        """Say no: a chord that is not waited for any more is settled."""
        return False

    def has_repair_permission(self, request: Any) -> bool:
        """Tell whether the user may repair chords."""
        return bool(request.user.has_perm("chordguard.repair_livechord"))

    def has_settle_permission(self, request: Any) -> bool:
        """Tell whether the user may settle chords."""
        return bool(request.user.has_perm("chordguard.settle_livechord"))

    def has_revoke_permission(self, request: Any) -> bool:
        """Tell whether the user may revoke chords."""
        return bool(request.user.has_perm("chordguard.revoke_livechord"))

    @admin.display(description="returned")
    def members(self, row: Any) -> str:
        """Return how many members have returned, of how many."""
        record = _record(row)
        return UNKNOWN if record is None else f"{record.returned} of {record.size or UNKNOWN}"

    @admin.display(description="failed")
    def failures(self, row: Any) -> str:
        """Return how many of them failed."""
        record = _record(row)
        return UNKNOWN if record is None else str(record.failed)

    @admin.display(description="diagnosis")
    def state(self, row: Any) -> str:
        """Return what is the matter with the chord."""
        return getattr(getattr(row, "diagnosis", None), "kind", UNKNOWN)

    @admin.display(description="reason")
    def reason(self, row: Any) -> str:
        """Return the evidence."""
        return getattr(getattr(row, "diagnosis", None), "reason", UNKNOWN)

    @admin.display(ordering="created")
    def age(self, row: Any) -> str:
        """Return for how long it runs."""
        return duration(time.time() - row.created)

    @admin.display(description="without progress", ordering="progressed")
    def idle(self, row: Any) -> str:
        """Return for how long no member returned."""
        record = _record(row)
        return UNKNOWN if record is None else duration(time.time() - record.progressed)

    @admin.action(description="Repair selected chords", permissions=["repair"])
    def repair_chords(self, request: Any, rows: Any) -> None:
        """Do what the evidence supports."""

        def repair_one(app: Any, _: Any, found: Any) -> Iterable[tuple[str, Any]]:
            return [(each.name, each.is_done) for each in repair(app, found, dry_run=False)]

        self._each(request, rows, repair_one)

    @admin.action(description="Settle selected chords", permissions=["settle"])
    def settle_chords(self, request: Any, rows: Any) -> None:
        """End chords now; members without a result count as failed."""

        def settle_one(_: Any, ledger: Any, found: Any) -> Iterable[tuple[str, Any]]:
            (diagnosis,) = examine_all(ledger, [found])
            return [("settle", settle(ledger, diagnosis, "it is settled in the admin").is_done)]

        self._each(request, rows, settle_one)

    @admin.action(description="Revoke selected chords", permissions=["revoke"])
    def revoke_chords(self, request: Any, rows: Any) -> None:
        """Revoke the members that have not returned, then settle the chords."""

        def revoke_one(app: Any, ledger: Any, found: Any) -> Iterable[tuple[str, Any]]:
            (diagnosis,) = examine_all(ledger, [found])
            revoke_members(app, [diagnosis], is_terminating=True)
            return [("revoke", settle(ledger, diagnosis, "it is revoked in the admin").is_done)]

        self._each(request, rows, revoke_one)

    def _each(
        self,
        request: Any,
        rows: Any,
        act: Callable[[Any, Any, str], Iterable[tuple[str, Any]]],
    ) -> None:
        """Act on each chord; tell what was done."""
        app = celery_app()
        for group_id in rows.values_list("pk", flat=True):
            try:
                done = list(act(app, required_ledger(app), group_id))
            except ChordguardError as exc:
                self.message_user(request, f"{group_id}: {exc}", messages.ERROR)
                continue
            if not done:
                self.message_user(request, f"{group_id}: nothing to do", messages.INFO)
            for name, is_done in done:
                level = messages.SUCCESS if is_done else messages.WARNING
                text = "done" if is_done else "not done, a worker is at it"
                self.message_user(request, f"{group_id}: {name} {text}", level)


def _record(row: Any) -> Any:
    return getattr(getattr(row, "diagnosis", None), "record", None)
