"""The commands that mend: `repair`, `fix`, `revoke`.

What each would do is shown by `--dry-run`, in the words in which it is told afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..ledger.access import required_ledger
from ..recovery.repair import Action, actions_for
from ..recovery.requested import carry_out_if_same, plans, revoke_members, settle
from ..recovery.survey import Chord, Survey, survey
from ..recovery.wording import WORDS
from .calling import CANCELLED, CANNOT_TELL, HEALTHY, PROBLEMS, Answer, Cannot, command, say
from .ranges import DURATION
from .screen import Screen, duration, plural

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("fix", "repair", "revoke")

ids_argument = click.argument("group_ids", nargs=-1, metavar="[ID]...")
dry_run_option = click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Only tell what would be done."
)
yes_option = click.option("--yes", "-y", "is_sure", is_flag=True, help="Do not ask.")


@command("repair")
@ids_argument
@click.option("--auto", "is_auto", is_flag=True, help="Repair all chords that are stuck.")
@click.option(
    "--resend",
    "is_resending",
    is_flag=True,
    help="Send lost members again, rather than have them fail. They may run twice. "
    "Needs chord_store_signatures.",
)
@click.option(
    "--interactive",
    "-i",
    "is_interactive",
    is_flag=True,
    help="Show stuck chords one by one and ask about each.",
)
@dry_run_option
@yes_option
def repair(app: Celery, group_ids: tuple[str, ...], is_auto: bool, **how: bool) -> Answer:
    """Repair stuck chords.

    What is done is what the evidence supports. Exit status: 0 all is well now, 1 something is left
    to do, 69 that cannot be told.
    """
    if bool(group_ids) == is_auto:
        raise Cannot("which chords? Expected ids (`celery chords check` tells them), or --auto")
    found = survey(app, group_ids or None)
    if how["is_interactive"]:
        return _repair_interactively(app, found, is_sure=how["is_sure"])
    ledger = required_ledger(app)
    planned = [
        (chord, action)
        for chord in found.chords
        for action in plans(ledger, chord, is_resending=how["is_resending"])
    ]
    told = [action for _, action in planned]
    if how["is_dry_run"] or not planned:
        return _answer(found, told)
    if not how["is_sure"]:
        _ask(told)
    return _answer(
        found, [carry_out_if_same(ledger, chord.found, action) for chord, action in planned]
    )


@command("fix")
@yes_option
def fix(app: Celery, is_sure: bool) -> Answer:
    """Repair stuck chords one by one: `repair --auto --interactive`."""
    return _repair_interactively(app, survey(app), is_sure=is_sure)


def _repair_interactively(app: Celery, found: Survey, *, is_sure: bool) -> Answer:
    """Show each stuck chord with what would be done, and ask."""
    ledger = required_ledger(app)
    stuck = [
        (chord, action)
        for chord in found.chords
        if chord.is_stuck
        for action in actions_for(chord.found)
    ]
    done: list[Action] = []
    for chord, action in stuck:
        answer = "y" if is_sure else _ask_about(chord, action)
        if answer == "q":
            given = _answer(found, done)
            return Answer(CANCELLED, given.data, given.show, "Cancelled.")
        is_sure = is_sure or answer == "a"
        done.append(action if answer == "n" else carry_out_if_same(ledger, chord.found, action))
    return _answer(found, done)


@command("revoke")
@ids_argument
@click.option(
    "--max-age",
    type=DURATION,
    metavar="AGE",
    help="Revoke the chords that started longer ago.",
)
@click.option(
    "--terminate/--no-terminate",
    "is_terminating",
    default=True,
    help="Whether members that run are ended, too (SIGTERM to their process); the default.",
)
@dry_run_option
@yes_option
def revoke(
    app: Celery,
    group_ids: tuple[str, ...],
    max_age: float | None,
    is_terminating: bool,
    is_dry_run: bool,
    is_sure: bool,
) -> Answer:
    """Give chords up: revoke and settle them.

    So nobody waits for them for ever. Members without a result count as failed: a strict chord
    fails, the body of a tolerant one runs with what is there.
    """
    if bool(group_ids) == (max_age is not None):
        raise Cannot("which chords? Expected ids (`celery chords list` tells them), or --max-age")
    found = survey(app, group_ids or None, is_asking=False, max_age=max_age)
    chords = [
        chord
        for chord in found.chords
        if chord.found.record is not None and (group_ids or chord.is_too_old)
    ]
    why = "it is revoked" if group_ids else f"it is older than {duration(max_age)}"
    told = [Action("abort", chord.id, why) for chord in chords]
    unknown = Survey([chord for chord in found.chords if chord.found.record is None])
    if is_dry_run or not told:
        return _answer(unknown, told)
    if not is_sure:
        _ask(told)
    revoke_members(app, [chord.found for chord in chords], is_terminating=is_terminating)
    ledger = required_ledger(app)
    return _answer(unknown, [settle(ledger, chord.found, why) for chord in chords])


def _ask(actions: Sequence[Action]) -> None:
    """Show what is going to be done and ask whether to do it.

    Raises:
        Cannot: Nobody is there to be asked.
        click.Abort: No.
    """
    for action in actions:
        say(_line(action))
    _check_terminal()
    click.confirm(f"{plural(len(actions), 'chord')}: go on?", abort=True, err=True)


def _ask_about(chord: Chord, action: Action) -> str:
    _check_terminal()
    say(f"\n{chord.found}\n  {chord.body}, {chord.progress} members done\n{_line(action)}")
    choice = click.Choice(["y", "n", "a", "q"])
    answer: str = click.prompt(
        "Do it? (yes, no, all from here on, quit)", default="n", type=choice, err=True
    )
    return answer


def _check_terminal() -> None:
    if not sys.stdin.isatty():
        raise Cannot("nobody is there to be asked: expected --yes, or --dry-run to look first")


def _line(action: Action) -> str:
    done = {None: "", True: ": done", False: ": not done"}[action.is_done]
    return f"{action.group_id}  {action.name}{done}\n  {WORDS[action.name]}; {action.reason}"


def _answer(found: Survey, actions: Sequence[Action]) -> Answer:
    """Return what was done, or would be, and what nothing is known to be done about."""
    concerned = {action.group_id for action in actions}
    left = [chord for chord in [*found.problems, *found.unknown] if chord.id not in concerned]
    if left or not all(action.is_done for action in actions):
        code = CANNOT_TELL if not actions and not any(c.is_problem for c in left) else PROBLEMS
    else:
        code = HEALTHY
    data: dict[str, Any] = {
        "actions": [
            {
                "group_id": action.group_id,
                "action": action.name,
                "reason": action.reason,
                "done": action.is_done,
            }
            for action in actions
        ],
        "left": [chord.facts() for chord in left],
    }

    def show(screen: Screen) -> None:
        for action in actions:
            screen.line(_line(action))
        for chord in left:
            screen.line(f"{chord.found}")
            screen.line("  nothing is done")
        if not actions and not left:
            screen.line("nothing to do")

    return Answer(code, data, show)
