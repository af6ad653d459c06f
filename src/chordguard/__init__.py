"""Chords that end: importable patches for Celery's chords and result backends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._install import Report, install_patches, patch_report, uninstall_patches
    from .engine.report import Outcome
    from .errors import (
        CannotTell,
        ChordEnded,
        ChordguardError,
        ChordguardWarning,
        ChordMemberError,
        ChordMemberLost,
        ChordMembersFailed,
        LedgerMissing,
        ResultTooLong,
        ResultUnreadable,
        SettingError,
        UntestedCeleryWarning,
    )
    from .failures import is_chord_error, raise_if_errors, split_results, to_exception
    from .lifecycle.progress import Progress, progress
    from .monitoring.health import check_stuck_chords, get_active_chords, health_check
    from .monitoring.periodic import setup_periodic_monitoring
    from .policy import strict, tolerant
    from .recovery.diagnosis import diagnose
    from .recovery.kinds import Diagnosis
    from .recovery.repair import Action, repair

__all__ = (
    "Action",
    "CannotTell",
    "ChordEnded",
    "ChordMemberError",
    "ChordMemberLost",
    "ChordMembersFailed",
    "ChordguardError",
    "ChordguardWarning",
    "Diagnosis",
    "LedgerMissing",
    "Outcome",
    "Progress",
    "Report",
    "ResultTooLong",
    "ResultUnreadable",
    "SettingError",
    "UntestedCeleryWarning",
    "check_stuck_chords",
    "diagnose",
    "get_active_chords",
    "health_check",
    "install_patches",
    "is_chord_error",
    "patch_report",
    "progress",
    "raise_if_errors",
    "repair",
    "setup_periodic_monitoring",
    "split_results",
    "strict",
    "to_exception",
    "tolerant",
    "uninstall_patches",
)

__version__ = "0.1.0"

#: Where each public name lives. It is imported when it is first asked for, as Celery does
#: it, so that `import chordguard` costs next to nothing.
_HOMES = {
    "_install": (
        "Report",
        "install_patches",
        "patch_report",
        "uninstall_patches",
    ),
    "engine.report": ("Outcome",),
    "errors": (
        "CannotTell",
        "ChordEnded",
        "ChordMemberError",
        "ChordMemberLost",
        "ChordMembersFailed",
        "ChordguardError",
        "ChordguardWarning",
        "LedgerMissing",
        "ResultTooLong",
        "ResultUnreadable",
        "SettingError",
        "UntestedCeleryWarning",
    ),
    "failures": (
        "is_chord_error",
        "raise_if_errors",
        "split_results",
        "to_exception",
    ),
    "lifecycle.progress": (
        "Progress",
        "progress",
    ),
    "monitoring.health": (
        "check_stuck_chords",
        "get_active_chords",
        "health_check",
    ),
    "monitoring.periodic": ("setup_periodic_monitoring",),
    "policy": (
        "strict",
        "tolerant",
    ),
    "recovery.diagnosis": ("diagnose",),
    "recovery.kinds": ("Diagnosis",),
    "recovery.repair": (
        "Action",
        "repair",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
