"""On which databases a test about Django runs."""

from __future__ import annotations

import pytest

on_postgresql = pytest.mark.parametrize("backend_kind", ["django-postgresql"])
on_sqlite = pytest.mark.parametrize("backend_kind", ["django-sqlite"])
on_both = pytest.mark.parametrize("backend_kind", ["django-sqlite", "django-postgresql"])
on_all = pytest.mark.parametrize(
    "backend_kind", ["django-sqlite", "django-postgresql", "django-mysql"]
)
