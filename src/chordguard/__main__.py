"""``python -m chordguard``: the commands of ``celery chords``, and the demo."""

from __future__ import annotations

import click

from . import __version__
from .cli import HELP, Commands

#: The demo went as it should, or not, or could not run.
FINE, WRONG, UNUSABLE = 0, 1, 2


@click.group(cls=Commands, help=HELP)
@click.version_option(__version__, prog_name="chordguard")
@click.option("-A", "--app", "name", metavar="APP", help="The app: proj[.module[:app]].")
@click.option("--json", "is_json", is_flag=True, help="Print JSON, also after the command.")
@click.pass_context
def main(ctx: click.Context, name: str | None, is_json: bool) -> None:
    """Remember what all commands share."""
    ctx.meta["chordguard.app"] = name
    ctx.meta["chordguard.json"] = is_json


@main.command()
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Run chords that Celery alone loses, with and without the patches, and compare.

    Needs no server: pip install "chordguard[demo]". Takes less than a minute. Exit status:
    0 every chord with the patches ended right, 1 one did not, 2 the demo could not run.
    """
    from .demo import CannotRun, run

    try:
        is_right = run()
    except CannotRun as exc:
        click.echo(str(exc), err=True)
        ctx.exit(UNUSABLE)
    ctx.exit(FINE if is_right else WRONG)


if __name__ == "__main__":
    main(prog_name="python -m chordguard")
