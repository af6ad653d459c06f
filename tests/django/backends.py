"""On which databases a test about Django runs."""

from __future__ import annotations

import pytest

on_postgresql = pytest.mark.parametrize("backend_kind", ["django-postgresql"])
on_sqlite = pytest.mark.parametrize("backend_kind", ["django-sqlite"])
#: SQLite is to chords one more database that locks all of itself.
_sqlite_nightly = pytest.param("django-sqlite", marks=pytest.mark.nightly)
on_both = pytest.mark.parametrize("backend_kind", [_sqlite_nightly, "django-postgresql"])
on_all = pytest.mark.parametrize(
    "backend_kind", [_sqlite_nightly, "django-postgresql", "django-mysql"]
)
