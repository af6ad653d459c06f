"""What all commands share: the app, the answer as text or JSON, and the exit status.

A command is a function of an app and of its arguments that returns an `Answer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any

import click

from ..errors import CannotTell, ChordguardError, LedgerMissing, without_passwords
from ..masking import words_of
from ..upstream.apps import CannotLoad, load_app, prepare_app
from .screen import Screen

__all__ = (
    "CANCELLED",
    "CANNOT_TELL",
    "CODES",
    "HEALTHY",
    "PROBLEMS",
    "SCHEMA",
    "UNUSABLE",
    "Answer",
    "Cannot",
    "command",
    "say",
)

#: Nothing is wrong.
HEALTHY = 0
#: Something is wrong.
PROBLEMS = 1
#: The command was not understood, or the app cannot be used.
UNUSABLE = 2
#: What has to be known could not be read (EX_UNAVAILABLE).
CANNOT_TELL = 69
#: Somebody stopped it (128 + SIGINT).
CANCELLED = 130

#: The version of the JSON that the commands print; see schema.json.
SCHEMA = 1

#: The word for an exit status in JSON, and the exit status for a word.
STATUSES = {HEALTHY: "healthy", PROBLEMS: "unhealthy", CANNOT_TELL: "unknown"}
CODES = {word: code for code, word in STATUSES.items()}


class Cannot(ChordguardError):
    """The command cannot be carried out as it was given; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        code: The exit status.
        data: What `--json` prints, beside `schema`, `command` and `status`.
        show: Prints it for people.
        note: What is said beside it, on stderr.
        is_shown: Whether the command itself has printed it.
    """

    code: int
    data: dict[str, Any] = field(default_factory=dict)
    show: Callable[[Screen], None] = lambda _: None
    note: str = ""
    is_shown: bool = False


def command(
    name: str, *, needs_app: bool = True, needs_patches: bool = True
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a command of a function of (app, arguments) that returns an :class:`Answer`.

    Arguments:
        name: The word for it on the command line.
        needs_app: Whether it cannot do without an app; its first argument may be None otherwise.
        needs_patches: Whether the app has to have the patches.
    """

    def declare(function: Callable[..., Answer]) -> click.Command:
        def call(
            ctx: click.Context, /, app_name: str | None, is_json: bool, **options: Any
        ) -> None:
            ctx.meta["chordguard.json"] = is_json = is_json or bool(ctx.meta.get("chordguard.json"))
            # What an app adds to all commands of `celery` is not for the function.
            options = {key: value for key, value in options.items() if key in known}
            try:
                app = app_of(ctx, app_name, needs_app=needs_app)
                if needs_patches:
                    check_patches(app)
                answer = answer_of(function, app, options)
            except (Cannot, CannotLoad) as exc:
                answer = Answer(UNUSABLE, {"problem": str(exc)}, note=str(exc))
            ctx.exit(give(answer, name, is_json=is_json))

        made = click.command(name)(update_wrapper(click.pass_context(call), function))
        known = {param.name for param in made.params}
        made.params += [
            click.Option(["--json", "is_json"], is_flag=True, help="Print JSON."),
            click.Option(
                ["-A", "--app", "app_name"],
                metavar="APP",
                help="The app: proj[.module[:app]]; also before the command.",
            ),
        ]
        return made

    return declare


def answer_of(function: Callable[..., Answer], app: Any, options: dict[str, Any]) -> Answer:
    """Call a command; what it cannot read, or somebody stops, is an answer, too."""
    try:
        return function(app, **options)
    except (Cannot, click.UsageError):
        raise
    except (KeyboardInterrupt, EOFError, click.Abort):
        return Answer(CANCELLED, {"problem": "cancelled"}, note="\nCancelled.")
    except (CannotTell, LedgerMissing) as exc:
        problem = str(exc)
    except Exception as exc:  # noqa: BLE001 - it is told; a traceback would be exit status 1
        problem = words_of(exc)
    return Answer(CANNOT_TELL, {"problem": problem}, note=f"Cannot tell: {problem}")


def give(answer: Answer, name: str, *, is_json: bool) -> int:
    """Print an answer; return its exit status."""
    if answer.is_shown:
        pass
    elif is_json:
        status = STATUSES.get(answer.code, "error")
        data = {"schema": SCHEMA, "command": name, "status": status, **answer.data}
        click.echo(without_passwords(json.dumps(data, indent=2)))
    else:
        answer.show(Screen())
    if answer.note:
        say(answer.note)
    return answer.code


def say(text: str) -> None:
    """Talk to the user, beside the data."""
    click.echo(without_passwords(text), err=True)


def app_of(ctx: click.Context, name: str | None, *, needs_app: bool) -> Any:
    """Return the app that a command is asked about, with its tasks imported.

    Raises:
        CannotLoad: There is none, or it cannot be imported.
    """
    name = name or ctx.meta.get("chordguard.app")
    if name:
        return load_app(name)
    # `celery -A proj` has loaded it already.
    app = getattr(ctx.obj, "app", None)
    if app is not None:
        return prepare_app(app, app.main)
    if needs_app:
        raise click.UsageError("no app: name it with -A proj[.module[:app]]", ctx)
    return None


def check_patches(app: Any) -> None:
    """Refuse an app without the patches.

    Raises:
        Cannot: It has not called `install_patches`.
    """
    from ..engine.patch import is_patched

    if not is_patched(app):
        raise Cannot(
            f"the app {app.main!r} has not called chordguard.install_patches(app), so nothing is "
            "known of its chords: call it in the module that creates the app, or name that with -A"
        )
