"""What keeps the demo from running."""

from __future__ import annotations

__all__ = ("CannotRun",)


class CannotRun(Exception):
    """The demo cannot run here; the message says why and what to do."""
