"""The commands for before anything is wrong: `ddl` and `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..monitoring.defects import defects
from ..monitoring.doctor import ask_backend, examine
from .calling import HEALTHY, PROBLEMS, Answer, Cannot, command
from .screen import Screen, plural

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("ddl", "doctor")


@command("ddl", needs_app=False, needs_patches=False)
@click.option(
    "--dialect",
    required=True,
    type=click.Choice(["mariadb", "mysql", "postgresql", "sqlite"]),
    help="The database.",
)
def ddl(app: Celery | None, dialect: str) -> Answer:
    """Print the SQL of the ledger's tables.

    For a database in which the application may not create tables. Nothing is executed. With an
    app they have its table names and schemas.
    """
    try:
        from ..ledger.tables import Tables

        statements = Tables.of(app).ddl(dialect)
        alterations = []
        if dialect in ("mariadb", "mysql"):
            from ..patches.database import wide_results

            alterations = list(wide_results.alterations(app))
    except ImportError as exc:
        raise Cannot(f'{exc}: pip install "chordguard[sqlalchemy]"') from exc

    def show(_: Screen) -> None:
        # Not by the screen: a terminal shall not break them either.
        for statement in alterations:
            click.echo(f"-- Where Celery's table is there already:\n-- {statement}")
        for statement in statements:
            click.echo(f"{statement};\n")

    data = {"statements": list(statements), "alterations": alterations}
    return Answer(HEALTHY, data, show)


@command("doctor", needs_patches=False)
@click.option(
    "--connect",
    "is_connecting",
    is_flag=True,
    help="Also ask the result backend whether it lets chords be counted.",
)
def doctor(app: Celery, is_connecting: bool) -> Answer:
    """Report patches and dangerous settings.

    The app is loaded as by `celery -A`; nothing is started and, without --connect, no server is
    asked. Exit status: 0 nothing found, 1 something dangerous found, 2 the app cannot be loaded, 69
    the result backend did not answer.
    """
    from .._install import patch_report

    findings = examine(app)
    if is_connecting:
        findings += ask_backend(app)
    report, known = patch_report(app), defects(app)
    data = {
        "patches": [
            {"name": outcome.patch, "status": outcome.status, "reason": outcome.reason}
            for outcome in report
        ],
        "defects": known,
        "findings": [
            {
                "subject": found.subject,
                "defect": found.defect,
                "danger": found.danger,
                "remedy": found.remedy,
            }
            for found in findings
        ],
    }

    def show(screen: Screen) -> None:
        screen.line(str(report))
        screen.line("\n  ".join(["\nDefects of this Celery:", *known]))
        for found in findings:
            screen.line(f"\n{found}")

    note = f"\n{plural(len(findings), 'dangerous finding')}"
    return Answer(PROBLEMS if findings else HEALTHY, data, show, note)
