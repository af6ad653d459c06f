"""``manage.py chords ...``: the commands of ``celery chords``, for the app of the project."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from django.core.management.base import BaseCommand

from ....cli import HELP, chords
from ...project import celery_app

__all__ = ("Command",)


class Command(BaseCommand):  # type: ignore[misc]
    """Hands its arguments to the commands of ``celery chords``."""

    help = HELP
    requires_system_checks: tuple[str, ...] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run a command; the exit status is the one that it gives."""
        sys.exit(self._run(argv[2:]))

    def add_arguments(self, parser: Any) -> None:
        """Take the arguments as they are, for `call_command`."""
        parser.add_argument("arguments", nargs="*")

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        """Run a command from code, as `call_command` does."""
        status = self._run(arguments)
        if status:
            raise SystemExit(status)

    @staticmethod
    def _run(arguments: list[str]) -> int:
        app = celery_app()
        given = None if app is None else SimpleNamespace(app=app)
        status = chords.main(
            arguments, prog_name="manage.py chords", obj=given, standalone_mode=False
        )
        return int(status or 0)
