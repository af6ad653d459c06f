"""The commands of ``python -m chordguard``."""

from __future__ import annotations

import sys

import click

from . import __version__

#: Nothing is wrong.
FINE = 0
#: Something dangerous was found, or the demo did not go as it should.
WRONG = 1
#: The command was not understood, or what it needs is not there.
UNUSABLE = 2


@click.group()
@click.version_option(__version__, prog_name="chordguard")
def main() -> None:
    """Celery chords that end: look at an app, prepare its database, or see the patches at work."""


@main.command()
@click.option(
    "-A", "--app", "name", required=True, metavar="APP", help="The app: proj[.module[:app]]."
)
def doctor(name: str) -> None:
    """Report the patches of an app and what is dangerous in its settings.

    The app is loaded as by `celery -A`; nothing is started. Exit status: 0 nothing found,
    1 something dangerous found, 2 the app cannot be loaded.
    """
    from ._install import patch_report
    from .doctor import CannotLoad, examine, load_app

    try:
        app = load_app(name)
    except CannotLoad as exc:
        _say(str(exc))
        sys.exit(UNUSABLE)
    findings = examine(app)
    _print(str(patch_report(app)))
    for finding in findings:
        _print(f"\n{finding}")
    count = len(findings)
    _say(f"\n{count} dangerous finding{'' if count == 1 else 's'}")
    sys.exit(WRONG if findings else FINE)


@main.command()
def demo() -> None:
    """Run chords that Celery alone loses, with and without the patches, and compare.

    Needs no server: pip install "chordguard[demo]". Takes less than a minute. Exit status:
    0 every chord with the patches ended right, 1 one did not, 2 the demo could not run.
    """
    from .demo import CannotRun, run

    try:
        is_right = run()
    except CannotRun as exc:
        _say(str(exc))
        sys.exit(UNUSABLE)
    sys.exit(FINE if is_right else WRONG)


@main.command()
@click.option(
    "--dialect",
    required=True,
    type=click.Choice(["mariadb", "mysql", "postgresql", "sqlite"]),
    help="The database.",
)
@click.option(
    "-A", "--app", "name", metavar="APP", help="Use the table names and schemas of this app."
)
def ddl(dialect: str, name: str | None) -> None:
    """Print the statements that create the tables in which chords are counted.

    For a database in which the application may not create tables. Nothing is executed. Exit
    status: 0 printed, 2 the app cannot be loaded or SQLAlchemy is not installed.
    """
    from .doctor import CannotLoad, load_app

    try:
        from .ledger.database import Tables

        statements = Tables.of(load_app(name) if name else None).ddl(dialect)
    except ImportError as exc:
        _say(f'{exc}: pip install "chordguard[sqlalchemy]"')
        sys.exit(UNUSABLE)
    except CannotLoad as exc:
        _say(str(exc))
        sys.exit(UNUSABLE)
    for statement in statements:
        click.echo(f"{statement};\n")


def _print(text: str) -> None:
    from .doctor import without_passwords

    click.echo(without_passwords(text))


def _say(text: str) -> None:
    """Talk to the user, beside the data."""
    from .doctor import without_passwords

    click.echo(without_passwords(text), err=True)


if __name__ == "__main__":
    main(prog_name="python -m chordguard")
