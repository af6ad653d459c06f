"""``python -m chordguard demo``: chords that Celery alone loses, with and without the patches.

It brings its own Valkey server and its own worker processes and leaves nothing behind.
"""

from __future__ import annotations

from .errors import CannotRun
from .show import run

__all__ = ("CannotRun", "run")
