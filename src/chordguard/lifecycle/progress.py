"""How far a chord is: from the ledger in one round trip, else from its members' results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from celery import current_app, states

from .. import signals
from ..ledger.access import ledger_on, required_ledger
from ..ledger.packing import leaf_ids
from ..ledger.tallies import ENDED, Tally
from ..upstream import backends
from ..upstream.awaited import header_of_chord, leaves_of
from ..upstream.results import ready_states

if TYPE_CHECKING:
    from celery import Celery

    from ..ledger.model import Ledger

__all__ = ("Progress", "id_of", "progress", "progress_of", "slow_progress")

#: The states of a live chord: not all members are done; all are, and its body is to be published.
RUNNING, READY = "running", "ready"

#: The state of a chord of which nothing is known: it has not started, or its end has expired.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Progress:
    """How far a chord is.

    Attributes:
        group_id: The id of its header.
        total: How many members it has; None where that is not known, or not yet.
        done: How many of them are done, well or badly, each counted once.
        failed: How many of those failed, were revoked, or are lost.
        percent: The share of the members that are done, from 0 to 100; None without a total.
        started: When the chord started (Unix time); None where that is not known.
        idle: Seconds since a member was counted, or since the chord ended.
        rate: Members a second since the chord started; None where that is not known.
        eta: Seconds until all members are done at that rate; None where that is not known.
        state: "running"; "ready": all members are done, the body is about to be published; once
            that is done "succeeded" or "tolerated" (members failed); "failed": the body never runs;
            "ended", where it is not known how; "unknown".
        nested: The chords among its members, as far as they have started, if they were asked for.
    """

    group_id: str
    total: int | None = None
    done: int = 0
    failed: int = 0
    percent: float | None = None
    started: float | None = None
    idle: float | None = None
    rate: float | None = None
    eta: float | None = None
    state: str = UNKNOWN
    nested: tuple[Progress, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Tell whether the body was published, or the chord failed."""
        return self.state in (*signals.OUTCOMES, ENDED)


def progress(
    chord: str | Any,
    app: Celery | None = None,
    *,
    nested: bool = False,
    may_be_slow: bool = True,
) -> Progress:
    """Return how far a chord is, by one command or statement, whatever its size.

    Arguments:
        chord: The result that starting the chord returned, the id of its header
            (``result.parent.id``), or the id of the result that its body gives (``result.id``).
        app: Its app; None: that of the result, or the current one.
        nested: Also tell of the chords among its members, which takes one more round trip for each
            depth.
        may_be_slow: Read the members' results, as Celery does, where the ledger does not know the
            chord and `chord` is the result of one.

    Raises:
        LedgerMissing: The app has no ledger, and the members may not, or cannot, be read.
        TypeError: `chord` is neither an id nor a result.
    """
    chord_id = id_of(chord)
    app = app or getattr(chord, "app", None) or current_app._get_current_object()
    ledger = ledger_on(app.backend, is_read=True)
    header = None if isinstance(chord, str) else header_of_chord(chord)
    if ledger is None and (header is None or not may_be_slow):
        required_ledger(app)
    tally = None if ledger is None else ledger.progress([chord_id]).get(chord_id)
    if tally is not None:
        found = progress_of(tally)
    elif header is not None and may_be_slow:
        found = slow_progress(chord, has_ledger=ledger is not None)
    else:
        found = Progress(chord_id)
    if nested and ledger is not None:
        found = replace(found, nested=_nested(ledger, [found.group_id], header)[found.group_id])
    return found


def id_of(chord: str | Any) -> str:
    """Return the id by which the ledger knows a chord: of its header, or of its body's result.

    Raises:
        TypeError: `chord` is neither an id nor a result.
    """
    if isinstance(chord, str):
        return chord
    found = getattr(header_of_chord(chord) or chord, "id", None)
    if not isinstance(found, str):
        raise TypeError(
            f"expected an id or a chord's result, got {chord!r}: pass what "
            "chord(...).apply_async() returned, or its id"
        )
    return found


def progress_of(tally: Tally) -> Progress:
    """Return how far a chord is, as its ledger counts it."""
    now = time.time()
    total, done = tally.size, tally.returned
    if tally.outcome is not None:
        state, until = tally.outcome, tally.progressed
    else:
        state, until = RUNNING if total is None or done < total else READY, now
    seconds = until - tally.created
    rate = done / seconds if done and seconds > 0 else None
    eta = None
    if state != RUNNING:
        eta = 0.0
    elif rate and total is not None:
        eta = (total - done) / rate
    return Progress(
        tally.group_id,
        total,
        done,
        tally.failed,
        _percent(done, total),
        tally.created,
        max(0.0, now - tally.progressed),
        rate,
        eta,
        state,
    )


def _percent(done: int, total: int | None) -> float | None:
    if total is None:
        return None
    return 100.0 * min(done, total) / total if total else 100.0


def slow_progress(result: Any, *, has_ledger: bool = False) -> Progress:
    """Return how far the chord of a `result` is, from the results of its members and its body.

    Arguments:
        result: That of a chord, with its parents.
        has_ledger: Whether there is a ledger that does not know it: it may not have started.
    """
    header = header_of_chord(result)
    members = {leaf.id: leaf for leaf in leaves_of(header)}
    body = [] if result is header else list(leaves_of(result))
    ready = _ready(result.app.backend, [*members.values(), *body])
    done = [ready[task_id] for task_id in members if task_id in ready]
    failed = sum(state in states.PROPAGATE_STATES for state in done)
    has_body = bool(body) and all(leaf.id in ready for leaf in body)
    if has_body:
        is_good = all(ready[leaf.id] == states.SUCCESS for leaf in body)
        outcome = signals.TOLERATED if failed else signals.SUCCEEDED
        state = outcome if is_good or not failed else signals.FAILED
    elif len(done) == len(members):
        state = READY
    else:
        state = UNKNOWN if has_ledger and not done else RUNNING
    total = len(members)
    percent = _percent(len(done), total)
    return Progress(header.id, total, len(done), failed, percent, state=state)


def _ready(backend: Any, results: Sequence[Any]) -> Mapping[str, str]:
    """Return the states of those results that are ready, by id."""
    if backends.can_be_read(backend):
        return ready_states(backend, [result.id for result in results])
    found = {result.id: result.state for result in results}
    return {id_: state for id_, state in found.items() if state in states.READY_STATES}


def _nested(
    ledger: Ledger, group_ids: Sequence[str], header: Any = None
) -> dict[str, tuple[Progress, ...]]:
    """Return the chords among the members of chords, all the way down, by the outer one's id.

    `header`: the result of the only one's header, which tells its members when it has ended, too.
    """
    if header is not None:
        members = {header.id: [leaf.id for leaf in leaves_of(header)]}
    else:
        records = ledger.read_all(group_ids)
        members = {id_: list(leaf_ids(record.header or ())) for id_, record in records.items()}
    wanted = [task_id for ids in members.values() for task_id in ids]
    tallies = ledger.progress(wanted) if wanted else {}
    inner = {tally.group_id for tally in tallies.values()} - {*members}
    deeper = _nested(ledger, sorted(inner)) if inner else {}
    return {
        group_id: tuple(
            replace(progress_of(tallies[id_]), nested=deeper.get(tallies[id_].group_id, ()))
            for id_ in members.get(group_id, ())
            if id_ in tallies
        )
        for group_id in group_ids
    }
