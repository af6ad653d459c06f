"""How Django knows the app."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ("ChordguardConfig",)


class ChordguardConfig(AppConfig):  # type: ignore[misc]
    """The app ``chordguard``: the ledger of live chords."""

    name = "chordguard.django"
    label = "chordguard"
    verbose_name = "Chords"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401
