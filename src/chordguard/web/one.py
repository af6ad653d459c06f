"""One chord as a page shows it: what is the matter, its members, its picture, what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..ledger.packing import Header
from ..recovery.evidence import examine
from ..recovery.kinds import Diagnosis
from ..recovery.members import Member, members_of
from ..recovery.survey import policy_of
from ..recovery.tree import Node, tree_of
from ..recovery.wording import duration
from ..upstream.results import ready_states
from .listing import Row, row_of, settled_kind
from .picture import Picture, picture_of, tone_of
from .text import moment

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.model import Ledger
    from .watch import Seen, Watch

__all__ = ("Ended", "MemberRow", "OneChord", "ended_of", "one_of")

#: So many chords whose bodies are members are in the picture.
INNER = 10

#: Members on a page of a chord. Up to so many are in the picture, too.
ON_A_PAGE = 100


@dataclass(frozen=True)
class MemberRow:
    """A member of a chord.

    Attributes:
        place: Where it stands in the header, from 1 on: "3", or "3.2" in a group.
        depth: In how many groups it is.
        member: What is known of it.
        inner: The chord that it is the body of.
    """

    place: str
    depth: int
    member: Member
    inner: str | None = None

    @property
    def tone(self) -> str:
        """How its state is coloured."""
        return tone_of(self.member.state)

    @property
    def time(self) -> str:
        """When it was done."""
        return (self.member.time or "").partition(".")[0].replace("T", " ")


@dataclass(frozen=True)
class OneChord:
    """What the page of one live chord shows.

    Attributes:
        row: What the list tells of it, too.
        started: When it started.
        settles: When it is settled if nothing happens; empty: never.
        body_ids: The ids of the results that its body gives.
        policy: What it wants, in words.
        outer: The chord whose member it is.
        members: The members on this page.
        page: Which page of them it is, from 1 on.
        pages: How many there are.
        first: The number of the first member on this page.
        count: How many members are known by their ids.
        picture: Its picture; it has no members where they fill pages.
        events: What happened and will happen: (time, sentence).
        marks: When members were done, as shares of the time from its start until now, and whether
            they failed.
        damage: What of it cannot be read.
    """

    row: Row
    started: str
    settles: str
    body_ids: Sequence[str]
    policy: Sequence[str]
    outer: str | None
    members: Sequence[MemberRow]
    page: int
    pages: int
    first: int
    count: int
    picture: Picture
    events: Sequence[tuple[str, str]]
    marks: Sequence[tuple[float, bool]]
    damage: str | None

    @property
    def lacks_names(self) -> bool:
        """Tell whether members are done whose names are not known."""
        return any(row.member.time and not row.member.name for row in self.members)


@dataclass(frozen=True)
class Ended:
    """A chord that is not in the ledger any more, and was seen before.

    Attributes:
        seen: What it was.
        states: The states of its body's results, by id, as far as they are there.
    """

    seen: Seen
    states: Mapping[str, str]


def ended_of(watch: Watch, ledger: Ledger, group_id: str) -> Ended | None:
    """Return what became of a chord that has ended; None where it was never seen."""
    seen = watch.remembered(group_id)
    if seen is None:
        return None
    return Ended(seen, ready_states(ledger.results, list(seen.body_ids)))


def one_of(watch: Watch, ledger: Ledger, group_id: str, page: int) -> OneChord | None:
    """Return what a page of a live chord shows; None where the ledger does not know it."""
    seen = watch.look().chords.get(group_id)
    found = watch.examined(ledger, group_id)
    record = found.record
    if record is None:
        return None
    watch.remember(found)
    known = settled_kind(found, seen)
    found = replace(found, kind=known.kind, reason=known.reason, evidence=known.evidence)
    places = list(_places(found.header or ()))
    pages = max(1, -(-len(places) // ON_A_PAGE))
    page = min(page, pages)
    shown = places[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]
    ids = [id_ for _, _, id_ in shown]
    if seen is not None and not found.missing and known.kind == seen.kind:
        found = replace(found, missing=tuple(id_ for id_ in ids if id_ in _nowhere(seen)))
    members = {member.id: member for member in members_of(ledger, found, ids)}
    inner = _inner(watch, group_id)
    rows = [
        MemberRow(place, depth, members[id_], inner.get(id_))
        for place, depth, id_ in shown
        if id_ in members
    ]
    drawn = ON_A_PAGE if pages == 1 else 0
    trees = {id_: _tree(ledger, inner[id_]) for id_ in list(inner)[:INNER] if drawn}
    picture = picture_of(tree_of(found, members, trees, drawn))
    return OneChord(
        row_of(found, seen),
        moment(record.created),
        moment(record.progressed + found.timeout) if found.timeout else "",
        found.body_ids,
        list(_policy(watch.app, found)),
        known.outer,
        rows,
        page,
        pages,
        (page - 1) * ON_A_PAGE + 1,
        len(places),
        picture,
        list(_events(found, rows if pages == 1 else ())),
        list(_marks(found, rows)) if pages == 1 else (),
        record.damage,
    )


def _tree(ledger: Ledger, group_id: str) -> Node:
    """Return the tree of a chord whose body is a member of the one that is shown."""
    found = examine(ledger, group_id)
    members = {}
    if found.header is not None and len(found.header) <= ON_A_PAGE:
        members = {member.id: member for member in members_of(ledger, found)}
    return tree_of(found, members, most=ON_A_PAGE if members else 0)


def _nowhere(seen: Seen) -> frozenset[str]:
    """Return the members that a look found neither with a worker nor in a queue."""
    return frozenset(seen.missing) - frozenset(seen.evidence) if seen.is_stuck else frozenset()


def _places(header: Header, start: str = "", depth: int = 0) -> Iterator[tuple[str, int, str]]:
    """Yield (place, depth, id) of each member, in header order."""
    for number, item in enumerate(header, 1):
        if isinstance(item, str):
            yield f"{start}{number}", depth, item
        else:
            yield from _places(item, f"{start}{number}.", depth + 1)


def _inner(watch: Watch, group_id: str) -> dict[str, str]:
    """Return the live chords whose bodies are members of a chord, by the members' ids."""
    return {
        task_id: seen.id
        for seen in watch.look().chords.values()
        if seen.outer == group_id
        for task_id in seen.body_ids
    }


def _policy(app: Celery, found: Diagnosis) -> Iterator[str]:
    """Yield what a chord wants, in words."""
    if found.body is None:
        return
    policy: dict[str, Any] = policy_of(app, found.body)
    if policy["tolerant"]:
        most = policy["max_errors"]
        bound = "any number of members" if most is None else f"up to {most} members"
        if isinstance(most, float):
            bound = f"up to {most:.0%} of the members"
        yield f"tolerant: its body runs although {bound} failed"
        yield f"errors are handed to the body as {policy['error_format']}"
    else:
        yield "strict: it fails when a member fails"
    if found.timeout is None:
        yield "it is never settled by itself"
    else:
        yield f"it is settled after {duration(found.timeout)} without progress"


def _events(found: Diagnosis, rows: Sequence[MemberRow]) -> Iterator[tuple[str, str]]:
    """Yield what happened and will happen to a chord, in order of time."""
    record: Any = found.record
    events = [(record.created, "it started")]
    done = sorted(
        ((at, row) for row in rows if (at := _done_at(row.member)) is not None),
        key=lambda one: one[0],
    )
    if done:
        events.append((done[0][0], f"member {done[0][1].place} was the first one done"))
    failed = [(at, row) for at, row in done if row.tone == "failed"]
    events += [(at, f"member {row.place} failed") for at, row in failed[:10]]
    if record.returned:
        events.append((record.progressed, f"member number {record.returned:,} was counted"))
    if record.claimed_until > time.time():
        events.append((time.time(), "a worker is just ending it"))
    if found.timeout:
        events.append((record.progressed + found.timeout, "it is settled if nothing happens"))
    for at, what in sorted(events, key=lambda event: event[0]):
        yield moment(at), what


def _marks(found: Diagnosis, rows: Sequence[MemberRow]) -> Iterator[tuple[float, bool]]:
    record: Any = found.record
    span = max(1.0, time.time() - record.created)
    for row in rows:
        at = _done_at(row.member)
        if at is not None:
            yield min(1.0, max(0.0, (at - record.created) / span)), row.tone == "failed"


def _done_at(member: Member) -> float | None:
    """Return when a member was done (Unix time)."""
    if not member.time:
        return None
    try:
        at = datetime.fromisoformat(member.time.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
