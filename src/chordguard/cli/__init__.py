"""The commands of `celery chords`, and of `python -m chordguard`.

Celery imports this with every `celery` call: click is all that it needs. A command's module is
imported when that command is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

__all__ = ("COMMANDS", "Commands", "chords")

#: Where each command is: module of this package, and name in it.
COMMANDS = {
    "status": "looking:status",
    "list": "looking:list_chords",
    "check": "looking:check",
    "inspect": "looking:inspect",
    "watch": "watching:watch",
    "graph": "graphing:graph",
    "web": "serving:web",
    "repair": "mending:repair",
    "fix": "mending:fix",
    "revoke": "mending:revoke",
    "clean": "cleaning:clean",
    "metrics": "metrics:metrics",
    "ddl": "preparing:ddl",
    "doctor": "preparing:doctor",
}

HELP = """See and mend chords: which are alive, which are stuck and why, and what to do.

Exit status: 0 healthy, 1 problems found, 2 the command or the app cannot be used, 69 something
could not be read, so nothing is known, 130 cancelled. Data goes to stdout, talk to stderr.
"""


class Commands(click.Group):
    """A group that imports a command when that is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names, in the order in which they are shown."""
        return [*COMMANDS, *self.commands]

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Return a command by name; None where there is no such command."""
        if name not in COMMANDS:
            return self.commands.get(name)
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
        return command


# Celery hands the options that an app adds to all commands to those of plugins, too (#7894).
@click.group(cls=Commands, help=HELP)
@click.option("--json", "is_json", is_flag=True, help="Print JSON, also after the command.")
@click.pass_context
def chords(ctx: click.Context, /, is_json: bool, **_: Any) -> None:
    """Remember what all commands share."""
    ctx.meta["chordguard.json"] = is_json
