"""The list of live chords: filtered, sorted, a page of it at a time; and how all of them are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from ..ledger.model import Ledger, Record
from ..recovery.evidence import examine_all
from ..recovery.kinds import KINDS, RUNNING, UNKNOWN, Diagnosis
from ..recovery.wording import TITLES, WORDS, plural
from .text import clock
from .watch import Look, Seen

if TYPE_CHECKING:
    from .watch import Watch

__all__ = (
    "Asked",
    "Listing",
    "Row",
    "Verdict",
    "attention_of",
    "listing_of",
    "row_of",
    "settled_kind",
)

#: Chords on a page.
ON_A_PAGE = 50

#: How the list may be sorted: what is asked for, and what it is called.
ORDERS = {
    "oldest": "oldest first",
    "newest": "newest first",
    "quiet": "longest without progress",
    "least": "least done first",
    "largest": "largest first",
}

#: Ages by which the list may be filtered, and their seconds.
AGES = {"1m": 60.0, "10m": 600.0, "1h": 3600.0, "6h": 21600.0, "1d": 86400.0}


@dataclass(frozen=True)
class Asked:
    """What of the list is asked for.

    Attributes:
        text: Chords whose body's name, or id, has this in it; with * or ? it is a pattern.
        kind: Chords with this diagnosis; empty: any.
        age: Chords at least so old, one of :data:`AGES`; empty: any.
        order: One of :data:`ORDERS`.
        page: From 1 on.
    """

    text: str = ""
    kind: str = ""
    age: str = ""
    order: str = "oldest"
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """Return what a URL asks for; what makes no sense is left out."""
        page = query.get("page", "1")
        return cls(
            query.get("q", "").strip()[:200],
            query.get("diagnosis", "") if query.get("diagnosis") in KINDS else "",
            query.get("age", "") if query.get("age") in AGES else "",
            query.get("order", "") if query.get("order") in ORDERS else "oldest",
            max(1, int(page)) if page.isascii() and page.isdecimal() and len(page) < 7 else 1,
        )

    @property
    def is_filtered(self) -> bool:
        """Tell whether it is not all chords that are asked for."""
        return bool(self.text or self.kind or self.age)

    def query(self, **changes: str | int) -> str:
        """Return it as the query of a URL, with changes."""
        asked = replace(self, **changes)  # type: ignore[arg-type]
        given = {"q": asked.text, "diagnosis": asked.kind, "age": asked.age}
        given["order"] = asked.order if asked.order != "oldest" else ""
        given["page"] = str(asked.page) if asked.page > 1 else ""
        text = urlencode({name: value for name, value in given.items() if value})
        return f"?{text}" if text else ""


@dataclass(frozen=True)
class Row:
    """A chord in a list.

    Attributes:
        id: The id of its header.
        body: The name of its body's task.
        kind: Its diagnosis.
        reason: The evidence.
        is_stuck: Whether it does not end without help.
        remedy: The name of what mends it.
        done: How many members are done.
        failed: How many of them failed.
        size: How many there are; None where that is not known.
        age: Seconds since it started.
        idle: Seconds without progress.
    """

    id: str
    body: str
    kind: str
    reason: str
    is_stuck: bool
    remedy: str | None
    done: int
    failed: int
    size: int | None
    age: float
    idle: float

    @property
    def title(self) -> str:
        """What its diagnosis means."""
        return TITLES.get(self.kind, self.kind)

    @property
    def tone(self) -> str:
        """How it is coloured: "bad", "doubtful" or "good"."""
        return "bad" if self.is_stuck else "doubtful" if self.kind == UNKNOWN else "good"

    @property
    def would(self) -> str:
        """What a repair would do; empty: nothing."""
        return WORDS[self.remedy] if self.remedy else ""


@dataclass(frozen=True)
class Verdict:
    """How all chords are, in a sentence.

    Attributes:
        tone: "good", "bad", "doubtful" or "waiting".
        text: The sentence.
        detail: What stands below it.
        checked: When they were looked at; empty: not yet.
    """

    tone: str
    text: str
    detail: str = ""
    checked: str = ""

    @classmethod
    def of(cls, look: Look, problem: str = "", rows: Sequence[Row] = ()) -> Verdict:
        """Return the verdict on what is known; it is good only where all is known.

        Arguments:
            look: The last look.
            problem: Why this page cannot be shown as it should be.
            rows: Chords that were read for this page, which may know better.
        """
        checked = clock(look.taken) if look.taken else ""
        if problem or look.problem:
            return cls("doubtful", "Cannot tell", problem or look.problem, checked)
        if not look.taken:
            text = "Asking workers and queues for the first time; this takes some seconds."
            return cls("waiting", "Looking at all chords…", text)
        if look.is_outdated:
            text = f"The last complete check was at {checked}, and no other has ended since."
            return cls("doubtful", "Cannot tell", text, checked)
        stuck = {seen.id for seen in look.chords.values() if seen.is_stuck}
        stuck |= {row.id for row in rows if row.is_stuck}
        unknown = {seen.id for seen in look.chords.values() if seen.kind == UNKNOWN}
        unknown |= {row.id for row in rows if row.kind == UNKNOWN}
        live = f"{len(look.chords):,} live chord{'' if len(look.chords) == 1 else 's'}"
        more = f"{plural(len(unknown), 'chord')} cannot be told." if unknown else ""
        if stuck:
            verb = "needs" if len(stuck) == 1 else "need"
            return cls("bad", f"{len(stuck):,} of {live} {verb} attention", more, checked)
        if unknown:
            return cls("doubtful", "Cannot tell", f"Of {live}, {more}", checked)
        if not look.chords:
            return cls("good", "No live chords", "Nothing is waiting to end.", checked)
        verb = "is on its way" if len(look.chords) == 1 else "are on their way"
        return cls("good", f"All is well: {live} {verb}", "", checked)


@dataclass(frozen=True)
class Listing:
    """A page of the list.

    Attributes:
        asked: What was asked for.
        rows: The chords on this page.
        total: How many there are on all pages.
        live: How many chords live in all.
        unseen: How many of them a filter left out since nothing was asked about them yet.
        taken: When it was read.
    """

    asked: Asked
    rows: Sequence[Row]
    total: int
    live: int
    unseen: int
    taken: str

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return max(1, -(-self.total // ON_A_PAGE))

    @property
    def first(self) -> int:
        """The number of the first chord on this page."""
        return (self.asked.page - 1) * ON_A_PAGE + 1


def listing_of(watch: Watch, ledger: Ledger, asked: Asked) -> Listing:
    """Return a page of the list of live chords."""
    look = watch.look()
    records, taken = watch.overview(ledger)
    found, unseen = _filtered(records, look.chords, asked)
    found = _sorted(found, asked.order)
    last = max(1, -(-len(found) // ON_A_PAGE))
    asked = replace(asked, page=min(asked.page, last))
    start = (asked.page - 1) * ON_A_PAGE
    rows = _rows(watch, ledger, [record.group_id for record in found[start : start + ON_A_PAGE]])
    return Listing(asked, rows, len(found), len(records), unseen, clock(taken))


def attention_of(watch: Watch, ledger: Ledger, most: int = ON_A_PAGE) -> list[Row]:
    """Return the chords that need somebody, as they are now."""
    ids = [seen.id for seen in watch.look().attention[:most]]
    return [row for row in _rows(watch, ledger, ids) if row.tone != "good"]


def _filtered(
    records: Sequence[Record], chords: Mapping[str, Seen], asked: Asked
) -> tuple[list[Record], int]:
    """Return the chords that are asked for, and how many are left out since they were not seen."""
    found = list(records)
    if asked.age:
        latest = time.time() - AGES[asked.age]
        found = [record for record in found if record.created <= latest]
    if not (asked.text or asked.kind):
        return found, 0
    text = asked.text.lower()
    is_pattern = "*" in text or "?" in text
    wanted, unseen = [], 0
    for record in found:
        seen = chords.get(record.group_id)
        is_named = bool(text) and text in record.group_id.lower()
        if seen is None:
            unseen += not is_named or bool(asked.kind)
            if is_named and not asked.kind:
                wanted.append(record)
            continue
        if asked.kind and seen.kind != asked.kind:
            continue
        body = seen.body.lower()
        is_named = is_named or (fnmatchcase(body, text) if is_pattern else text in body)
        if is_named or not text:
            wanted.append(record)
    return wanted, unseen


def _sorted(records: list[Record], order: str) -> list[Record]:
    keys = {
        "oldest": lambda record: record.created,
        "newest": lambda record: -record.created,
        "quiet": lambda record: record.progressed,
        "least": lambda record: record.returned / record.size if record.size else 0.0,
        "largest": lambda record: -(record.size or 0),
    }
    return sorted(records, key=keys[order])


def _rows(watch: Watch, ledger: Ledger, ids: Sequence[str]) -> list[Row]:
    """Return chords as they are now."""
    chords = watch.look().chords
    rows = []
    for found in examine_all(ledger, ids):
        if found.record is not None:
            watch.remember(found)
            rows.append(row_of(found, chords.get(found.group_id)))
    return rows


def settled_kind(found: Diagnosis, seen: Seen | None) -> Seen:
    """Return what is the matter with a chord: what was seen of it counts until it moves.

    Workers and queues are asked by a look alone.
    """
    now = Seen.of(found)
    if seen is None or found.kind != RUNNING or seen.returned != now.returned:
        return now
    if not seen.needs_somebody and not seen.evidence:
        return now
    return replace(
        now,
        kind=seen.kind,
        reason=seen.reason,
        is_stuck=seen.is_stuck,
        remedy=seen.remedy,
        evidence=seen.evidence,
    )


def row_of(found: Diagnosis, seen: Seen | None) -> Row:
    """Return what a list tells of a chord, given what a look saw of it."""
    record, known = found.record, settled_kind(found, seen)
    age = max(0.0, time.time() - record.created) if record else 0.0
    return Row(
        found.group_id,
        known.body,
        known.kind,
        known.reason,
        known.is_stuck,
        known.remedy,
        known.returned,
        record.failed if record else 0,
        known.size,
        age,
        found.idle,
    )
