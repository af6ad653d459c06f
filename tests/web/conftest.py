"""A cluster whose chords nobody else looks after, as for the commands, and the page of its app."""

from __future__ import annotations

from tests.cli.conftest import backend_kind, cluster, quiet  # noqa: F401 - fixtures
