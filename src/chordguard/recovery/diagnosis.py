"""What is the matter with a chord: the evidence, and the name that it is given.

`examine` asks the ledger and the stored results, which is what the watchdog and the safety net
act on. `diagnose` asks the workers and the broker's queues, too, which takes longer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..ledger.access import required_ledger
from ..ledger.model import Ledger
from ..lifecycle import safety_net
from ..upstream.awaited import group_id_of
from .evidence import examine_all
from .kinds import MEMBER_LOST, POLLER_LOST, RUNNING, UNKNOWN, Diagnosis
from .places import find

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "diagnose",
    "diagnose_all",
)


def diagnose(app: Celery, chord: str | Any) -> Diagnosis:
    """Return what is the matter with a chord.

    Beside ledger and results, the workers are asked what they work on, and the queues are read
    where the broker allows it (Redis). Where evidence is missing the diagnosis is "unknown".

    Arguments:
        app: An app with the patches.
        chord: The result that starting the chord returned, or the id of its header
            (``result.parent.id``).

    Raises:
        LedgerMissing: The app has no ledger, or it cannot be used.
        TypeError: `chord` is neither an id nor the result of a chord.
    """
    return diagnose_all(app, [group_id_of(chord)])[0]


def diagnose_all(
    app: Celery, group_ids: Sequence[str] | None = None, *, ledger: Ledger | None = None
) -> list[Diagnosis]:
    """Tell what is the matter with chords, as `diagnose` does, asking once for all of them.

    Arguments:
        app: An app with the patches.
        group_ids: The ids of their headers; None: all live chords.
        ledger: That of `app`, such as a :func:`bounded_ledger`.

    Raises:
        LedgerMissing: The app has no ledger, or it cannot be used.
    """
    ledger = ledger or required_ledger(app)
    ids = ledger.group_ids() if group_ids is None else group_ids
    found = {each.group_id: each for each in examine_all(ledger, ids, is_thorough=True)}
    pollers = {
        id_: safety_net.unlock_id(id_) if ledger.has_safety_net else None
        for id_, each in found.items()
        if each.kind == RUNNING and each.missing
    }
    wanted = {id_ for each in map(found.get, pollers) if each for id_ in each.missing}
    places, why_not_all = find(app, wanted | set(filter(None, pollers.values())))
    nowhere = wanted - places.keys()
    if nowhere:
        places.update(_in_other_chords(ledger, found, nowhere))
    # Some were seen nowhere since they have ended meanwhile.
    again = [id_ for id_ in pollers if not places.keys() >= set(found[id_].missing)]
    found.update((e.group_id, e) for e in examine_all(ledger, again, is_thorough=True))
    for id_, poller in pollers.items():
        if found[id_].kind == RUNNING:
            found[id_] = _located(found[id_], poller, places, why_not_all)
    return [found[id_] for id_ in ids]


def _in_other_chords(
    ledger: Ledger, found: Mapping[str, Diagnosis], wanted: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (id, place) of members that are bodies of live chords: nobody has sent them yet."""
    others = [group_id for group_id in ledger.group_ids() if group_id not in found]
    for chord in (*found.values(), *examine_all(ledger, others)):
        for task_id in chord.body_ids:
            if task_id in wanted and chord.record is not None:
                yield task_id, f"waits for chord {chord.group_id}"


def _located(
    found: Diagnosis, poller: str | None, places: Mapping[str, str], why_not_all: str | None
) -> Diagnosis:
    """Name what is the matter with a chord that runs, given where tasks were seen."""
    wanted = [*found.missing, *([poller] if poller else [])]
    seen = {id_: places[id_] for id_ in wanted if id_ in places}
    nowhere = [task_id for task_id in found.missing if task_id not in seen]
    kind, reason = found.kind, found.reason
    if nowhere and why_not_all:
        kind, reason = UNKNOWN, f"{reason}; {len(nowhere)} not seen, but {why_not_all}"
    elif nowhere:
        kind, reason = MEMBER_LOST, f"no worker and no queue has {', '.join(nowhere)}"
    elif poller and poller not in seen and not why_not_all:
        kind = POLLER_LOST
        reason = f"{reason}; no worker and no queue has its celery.chord_unlock"
    elif seen:
        reason = f"{reason}; {_told(seen.values())}"
    return replace(found, kind=kind, reason=reason, evidence=seen)


def _told(places: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for place in places:
        counts[place] = counts.get(place, 0) + 1
    return ", ".join(f"{count} {place}" for place, count in sorted(counts.items()))
