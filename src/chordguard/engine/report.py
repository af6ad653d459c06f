"""What became of each patch for an app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import versions
from .patch import Patch, is_patched

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Outcome", "outcome_of")


@dataclass(frozen=True)
class Outcome:
    """What became of one patch for one app: a line of the report."""

    patch: str
    defects: tuple[str, ...]
    #: One of "applied", "waiting", "skipped", "failed".
    status: str
    reason: str

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.patch}: {self.status}{reason}"


def outcome_of(patch: Patch, app: Celery) -> Outcome:
    """Return what became of a patch for `app`."""

    def line(status: str, reason: str = "") -> Outcome:
        return Outcome(patch.name, patch.ids, status, reason)

    if not is_patched(app):
        return line("skipped", "the patches are not installed for this app")
    if not patch.is_needed():
        if patch.since is not None and versions.celery_version() < patch.since:
            version = ".".join(map(str, patch.since))
            return line("skipped", f"not needed: it came with Celery {version}")
        if patch.until is not None and versions.celery_version() >= patch.until:
            version = ".".join(map(str, patch.until))
            return line("skipped", f"not needed: mended in Celery {version}")
        installed = f"{patch.driver} {versions.installed_version(patch.driver or '')}"
        return line("skipped", f"not needed: it does not show with {installed}")
    if app.configured and not patch.is_switched_on(app):
        if patch.is_opt_in:
            return line("skipped", f"off unless {patch.setting} = True")
        return line("skipped", f"switched off by {patch.setting}")
    if app.configured and not patch.is_asked_for(app):
        return line("skipped", f"it needs {patch.needs_setting}")
    missing = [target.missing for target in patch.targets_here() if target.missing]
    if missing:
        return line("failed", "; ".join(missing))
    if patch.driver_is_absent():
        return line("skipped", f"the package {patch.driver} is not installed")
    waiting = [t for t in patch.targets_here() if t.original is None and not t.is_optional]
    if waiting:
        return line("waiting", f"applied as soon as {waiting[0].module} is imported")
    if patch.task_targets and not app.finalized:
        return line("waiting", "applied as soon as the app is finalized")
    return line("applied")
