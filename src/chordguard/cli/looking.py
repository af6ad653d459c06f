"""The commands that look: `status`, `list`, `check`, `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import click

from ..ledger.access import bounded_ledger
from ..recovery.kinds import KINDS
from ..recovery.members import Member, members_of
from ..recovery.requested import advice
from ..recovery.survey import NUMBERS, Chord, Survey, policy_of, survey
from .calling import CODES, Answer, command
from .ranges import DURATION
from .screen import Screen, duration, plural
from .strangers import strangers_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("check", "inspect", "list_chords", "show_problem", "status")

#: So many chords are shown, unless more are asked for.
SHOWN = 100

scan_option = click.option(
    "--scan",
    "is_scanning",
    is_flag=True,
    help="Also look for chords without a ledger. On Redis this scans all keys.",
)


@command("status")
@scan_option
def status(app: Celery, is_scanning: bool) -> Answer:
    """Count the live chords, and their members.

    From the ledger and the stored results alone: `check` asks workers and queues, too.
    """
    found = survey(app, is_asking=False)
    strangers = strangers_of(app, found) if is_scanning else None
    chords = found.chords
    oldest = chords[0] if chords else None
    members = {
        "size": sum(chord.size or 0 for chord in chords),
        "done": sum(chord.done for chord in chords),
        "failed": sum(chord.failed for chord in chords),
        "missing": sum(chord.missing or 0 for chord in chords),
    }
    data: dict[str, Any] = {
        "live": len(chords),
        "stuck": len(found.problems),
        "diagnoses": found.kinds,
        "oldest": oldest.facts() if oldest else None,
        "members": members,
    }
    if strangers is not None:
        data["without_ledger"] = [stranger.facts() for stranger in strangers]

    def show(screen: Screen) -> None:
        rows = [(kind, str(count)) for kind, count in found.kinds.items()]
        rows.append(("live chords", str(len(chords))))
        if strangers is not None:
            rows.append(("without ledger", str(len(strangers))))
        screen.table(("diagnosis", "chords"), rows)
        if oldest:
            screen.line()
            screen.line(f"oldest   {duration(oldest.age)}, {oldest.id}")
            screen.line(
                f"members  {members['done']} of {members['size']} done, "
                f"{members['failed']} of them failed, {members['missing']} missing"
            )

    return Answer(CODES[found.status], data, show)


@dataclass(frozen=True)
class Filter:
    """Which chords are listed.

    Attributes:
        min_age: Those that started at least so many seconds ago; None: all.
        body: Those with such a body (a glob); None: all.
        kinds: Those with one of these diagnoses; empty: all.
        is_stuck: Only those that are stuck.
    """

    min_age: float | None
    body: str | None
    kinds: tuple[str, ...]
    is_stuck: bool

    def __call__(self, chord: Chord) -> bool:
        return (
            (self.min_age is None or (chord.age or 0.0) >= self.min_age)
            and (self.body is None or fnmatch(chord.body, self.body))
            and (not self.kinds or chord.found.kind in self.kinds)
            and (not self.is_stuck or chord.is_stuck)
        )


@command("list")
@click.option("--min-age", type=DURATION, metavar="AGE", help="Started at least so long ago: 6h.")
@click.option("--body", metavar="GLOB", help="With such a body, as in 'proj.tasks.*'.")
@click.option(
    "--diagnosis",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    metavar="NAME",
    help=f"With this diagnosis: {', '.join(KINDS)}. May be given several times.",
)
@click.option("--stuck", "is_stuck", is_flag=True, help="Those that need somebody.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help=f"Show N of them, not {SHOWN}.")
@scan_option
def list_chords(app: Celery, limit: int | None, is_scanning: bool, **asked: Any) -> Answer:
    """List live chords, the oldest first.

    Exit status 1 if one of them is stuck.
    """
    everything = survey(app)
    strangers = strangers_of(app, everything) if is_scanning else []
    is_wanted = Filter(**asked)
    found = Survey([chord for chord in everything.chords if is_wanted(chord)])
    shown = found.chords[:limit]
    data: dict[str, Any] = {
        "total": len(found.chords),
        "chords": [chord.facts() for chord in shown],
    }
    if is_scanning:
        data["without_ledger"] = [stranger.facts() for stranger in strangers]

    def show(screen: Screen) -> None:
        is_wide = screen.is_wide
        numbers = NUMBERS if is_wide else NUMBERS[:1]
        rows = [row_of(chord, is_wide=is_wide) for chord in shown[: limit or SHOWN]]
        unknown = ("-",) * (len(numbers) - 1)
        rows += [
            (s.group_id, "without ledger", "-", s.progress, *unknown, s.where) for s in strangers
        ]
        if rows:
            screen.table(("chord", "diagnosis", "age", *numbers, "body"), rows)
        else:
            screen.line("no such chord" if everything.chords else "no live chords")

    hidden = len(found.chords) - (limit or SHOWN)
    note = f"{hidden} more: see --limit" if hidden > 0 else ""
    return Answer(CODES[found.status], data, show, note)


@command("check")
@click.option(
    "--max-age",
    type=DURATION,
    metavar="AGE",
    help="A chord that started longer ago is a problem by that alone.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", default=20, show_default=True)
@scan_option
def check(app: Celery, max_age: float | None, limit: int, is_scanning: bool) -> Answer:
    """Tell which chords are stuck, why, and what to do.

    The ledger, the results, the workers and the queues are asked; a chord is not stuck because
    it is old. Exit status 0 none is, 1 some are, 69 that cannot be told.
    """
    found = survey(app, max_age=max_age)
    strangers = strangers_of(app, found) if is_scanning else None
    problems, unknown = found.problems, found.unknown
    data: dict[str, Any] = {
        "live": len(found.chords),
        "problems": [chord.facts() for chord in problems],
        "unknown": [chord.facts() for chord in unknown],
    }
    if strangers is not None:
        data["without_ledger"] = [stranger.facts() for stranger in strangers]

    def show(screen: Screen) -> None:
        for chord in [*problems, *unknown][:limit]:
            show_problem(screen, chord)
        for stranger in (strangers or ())[:limit]:
            screen.line(f"{stranger.group_id}  without ledger")
            screen.line(f"  {stranger.where}; nothing more is known of it")
        screen.line(
            f"{plural(len(found.chords), 'live chord')}, {len(problems)} "
            f"of them in trouble{f', {len(unknown)} not known' if unknown else ''}"
        )

    hidden = len(problems) + len(unknown) - limit
    note = f"{hidden} more: see --limit" if hidden > 0 else ""
    return Answer(CODES[found.status], data, show, note)


@command("inspect")
@click.argument("group_id", metavar="ID")
@click.option("--verbose", "-v", "is_verbose", is_flag=True, help="Results and errors, too.")
def inspect(app: Celery, group_id: str, is_verbose: bool) -> Answer:
    """Show all that is known of one chord.

    ID is the id of its header: `result.parent.id` of the result that starting it gave.
    """
    found = survey(app, [group_id])
    (chord,) = found.chords
    with bounded_ledger(app) as ledger:
        members = members_of(ledger, chord.found)
    data: dict[str, Any] = {
        "chord": chord.facts(),
        "body_ids": list(chord.found.body_ids),
        "policy": policy_of(app, chord.found.body) if chord.found.record else None,
        "members": [member.facts(is_verbose=is_verbose) for member in members],
    }
    if is_verbose:
        data["body"] = None if chord.found.body is None else repr(chord.found.body)

    def show(screen: Screen) -> None:
        show_chord(screen, chord, data)
        if members:
            screen.line()
            titles = ("member", "state", "name", "worker", "time")
            screen.table(titles, [member.row() for member in members])
        if is_verbose:
            show_results(screen, members)

    return Answer(CODES[found.status], data, show)


def row_of(chord: Chord, *, is_wide: bool) -> tuple[str, ...]:
    """Return the row of a chord in a list."""
    numbers = chord.numbers(is_wide=is_wide)
    return (chord.id, chord.found.kind, duration(chord.age), *numbers, chord.body)


def show_problem(screen: Screen, chord: Chord) -> None:
    """Print what is the matter with a chord, and what to do."""
    kind = chord.found.kind
    style = "bold red" if chord.is_stuck else "yellow"
    screen.line(f"{chord.id}  {kind}", style)
    screen.line(f"  {chord.body}, {duration(chord.age)} old, {chord.progress} members done")
    screen.line(f"  {chord.found.reason}")
    screen.line(f"  -> {advice(chord)}")


def show_chord(screen: Screen, chord: Chord, data: dict[str, Any]) -> None:
    """Print the head of `inspect`."""
    found = chord.found
    rows = [("chord", chord.id), ("diagnosis", found.kind), ("evidence", found.reason)]
    if found.record is not None:
        policy = data["policy"]
        errors = "tolerant" if policy["tolerant"] else "strict"
        if policy["tolerant"]:
            errors += f", at most {policy['max_errors']}" if policy["max_errors"] else ""
            errors += f", errors as {policy['error_format']}"
        rows += [
            ("repair", chord.remedy or "-"),
            ("started", f"{data['chord']['started']} ({duration(chord.age)} ago)"),
            ("progress", f"{chord.progress} members, the last {duration(found.idle)} ago"),
            ("failed", str(chord.failed)),
            ("rate", f"{chord.rate}, all are done in {chord.eta}" if chord.pace else "-"),
            ("body", f"{chord.body} {' '.join(found.body_ids)}"),
            ("policy", f"{errors}, settled after {duration(found.timeout)}"),
        ]
    for title, value in rows:
        screen.line(f"{title:<10} {value}")


def show_results(screen: Screen, members: list[Member]) -> None:
    """Print what members gave."""
    for member in members:
        if member.result is not None:
            screen.line()
            screen.line(member.id)
            screen.line(f"  {member.result}")
