"""What the page knows of all chords: looked at again and again, as long as somebody wants to know.

A look asks ledger, results, workers and queues, as the command `check`. It is made in a thread of
its own, one at a time, begins when a page is asked for and the last one is old, and ends by
itself: where no page is open nothing is asked. Pages do not wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import masking
from ..ledger.access import bounded_ledger
from ..ledger.model import Ledger, Record
from ..recovery.evidence import examine
from ..recovery.kinds import UNKNOWN, Diagnosis
from ..recovery.survey import Chord, survey
from ..recovery.tree import outer_chord

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Look", "Seen", "Watch")

logger = logging.getLogger("chordguard")

#: Seconds after which a look is old, at least and at most.
LOOK_EVERY = 5.0
LOOK_AT_MOST_EVERY = 60.0
#: A look is old after so many times as long as it took.
LOOK_TIMES = 5
#: After so many periods without a new look the last one says nothing any more.
PERIODS = 4

#: Seconds for which an overview of all chords is shown again, and how many times as long as it
#: took.
OVERVIEW_KEPT = 1.0
OVERVIEW_TIMES = 5
#: Seconds after which a page waits for another one; one that takes less is waited for at once.
OVERVIEW_STALE = 10.0
OVERVIEW_QUICK = 0.1

#: A diagnosis is shown again for so many times as long as it took, that of so many chords at most.
EXAMINED_TIMES = 20
EXAMINED = 50

#: Of so many chords that have ended is kept what they were.
REMEMBERED = 2000


@dataclass(frozen=True)
class Seen:
    """What was seen of a chord, without what takes much memory.

    Attributes:
        id: The id of its header.
        body: The name of its body's task.
        body_ids: The ids of the results that the body gives.
        outer: The chord whose member it is.
        kind: Its diagnosis.
        reason: The evidence.
        is_stuck: Whether it does not end without help.
        remedy: The name of what mends it.
        returned: How many members were done.
        size: How many there are.
        created: When it started (Unix time).
        evidence: Where members without a result were seen, by id.
        missing: The members without a result of a chord that is stuck.
    """

    id: str
    body: str
    body_ids: tuple[str, ...]
    outer: str | None
    kind: str
    reason: str
    is_stuck: bool
    remedy: str | None
    returned: int
    size: int | None
    created: float | None
    evidence: Mapping[str, str]
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Diagnosis) -> Seen:
        """Return what a diagnosis says."""
        chord, record = Chord(found), found.record
        return cls(
            found.group_id,
            chord.body,
            found.body_ids,
            outer_chord(found),
            found.kind,
            found.reason,
            found.is_stuck,
            chord.remedy,
            chord.done,
            chord.size,
            record.created if record else None,
            found.evidence,
            found.missing if found.is_stuck else (),
        )

    @property
    def needs_somebody(self) -> bool:
        """Tell whether somebody should look at it."""
        return self.is_stuck or self.kind == UNKNOWN


@dataclass(frozen=True)
class Look:
    """All live chords at one moment.

    Attributes:
        chords: What was seen of each, the oldest first, by id.
        problem: Why nothing could be told; empty: it could.
        taken: When (Unix time); 0: not yet.
        took: How many seconds it took.
    """

    chords: Mapping[str, Seen] = field(default_factory=dict)
    problem: str = ""
    taken: float = 0.0
    took: float = 0.0

    @property
    def period(self) -> float:
        """After how many seconds it is old."""
        return min(LOOK_AT_MOST_EVERY, max(LOOK_EVERY, LOOK_TIMES * self.took))

    @property
    def age(self) -> float:
        """How many seconds ago it was taken."""
        return max(0.0, time.time() - self.taken)

    @property
    def is_outdated(self) -> bool:
        """Tell whether it says nothing any more: looks take too long, or do not come back."""
        return self.age > PERIODS * self.period + self.took

    @property
    def attention(self) -> list[Seen]:
        """The chords that need somebody: first those that are stuck, then what is not known."""
        found = [seen for seen in self.chords.values() if seen.needs_somebody]
        return sorted(found, key=lambda seen: not seen.is_stuck)


class Watch:
    """Looks at the chords of an app.

    Arguments:
        app: A Celery app with the patches.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._look = Look()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="chordguard-web")
        self._lock = threading.Lock()
        self._is_looking = False
        self._is_wanted_again = False
        #: When the overview was read, how many seconds that took, and what it is.
        self._overview: tuple[float, float, list[Record]] = (0.0, 0.0, [])
        #: Held while the overview is read for pages to come.
        self._reading = threading.Lock()
        #: How many times something was done.
        self._acts = 0
        self._ended: OrderedDict[str, Seen] = OrderedDict()
        #: Until when a diagnosis is shown again, and the diagnosis.
        self._examined: dict[str, tuple[float, Diagnosis]] = {}

    def begin(self) -> None:
        """Have all read that the first page needs: first what it cannot do without."""
        self._read_overview_soon(then=self.look_soon)

    def look(self) -> Look:
        """Return the last look; have the next one made if it is old."""
        look = self._look
        if look.age > look.period:
            self.look_soon()
        return look

    def look_soon(self) -> None:
        """Have another look made; pages do not wait for it."""
        with self._lock:
            if self._is_looking:
                self._is_wanted_again = True
                return
            self._is_looking = True
        try:
            self._executor.submit(self._look_now)
        except RuntimeError:  # it is closed
            self._is_looking = False

    def forget(self) -> None:
        """Read all anew: something was done."""
        with self._lock:
            self._acts += 1
            self._overview = (0.0, 0.0, [])
            self._examined.clear()
        self.look_soon()

    def overview(self, ledger: Ledger) -> tuple[list[Record], float]:
        """Return how far all live chords are, and when that was read (Unix time).

        What takes long to read is shown again while it is read anew: pages do not wait for it.
        """
        taken, took, records = self._overview
        age, is_quick = time.time() - taken, took < OVERVIEW_QUICK
        if age > (OVERVIEW_KEPT if is_quick else OVERVIEW_STALE):
            return self._read_overview(ledger)
        if age > max(OVERVIEW_KEPT, OVERVIEW_TIMES * took):
            self._read_overview_soon()
        return records, taken

    def _read_overview(self, ledger: Ledger) -> tuple[list[Record], float]:
        acts, started = self._acts, time.time()
        records = ledger.overview()
        taken = time.time()
        with self._lock:
            # What was read before something was done is old.
            if acts == self._acts:
                self._overview = (taken, taken - started, records)
        return records, taken

    def _read_overview_soon(self, then: Callable[[], None] = lambda: None) -> None:
        def read() -> None:
            try:
                with bounded_ledger(self.app) as ledger:
                    self._read_overview(ledger)
            except Exception:
                logger.debug("Cannot read the overview of chords", exc_info=True)
            finally:
                self._reading.release()
                then()

        if self._reading.acquire(blocking=False):
            try:
                self._executor.submit(read)
            except RuntimeError:  # it is closed
                self._reading.release()

    def examined(self, ledger: Ledger, group_id: str) -> Diagnosis:
        """Return the diagnosis of a chord, again for some time where it took long to find out."""
        until, found = self._examined.get(group_id, (0.0, None))
        if found is None or time.monotonic() >= until:
            started = time.monotonic()
            found = examine(ledger, group_id)
            ended = time.monotonic()
            with self._lock:
                if len(self._examined) >= EXAMINED:
                    self._examined.clear()
                self._examined[group_id] = (ended + EXAMINED_TIMES * (ended - started), found)
        return found

    def remember(self, found: Diagnosis) -> None:
        """Keep what a chord was: it may have ended when it is asked for again."""
        if found.record is not None:
            self._keep([Seen.of(found)])

    def remembered(self, group_id: str) -> Seen | None:
        """Return what a chord was that may have ended."""
        return self._look.chords.get(group_id) or self._ended.get(group_id)

    def close(self) -> None:
        """Make no look any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _keep(self, chords: list[Seen]) -> None:
        with self._lock:
            for seen in chords:
                self._ended[seen.id] = seen
                self._ended.move_to_end(seen.id)
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def _look_now(self) -> None:
        while True:
            self._is_wanted_again = False
            started = time.time()
            try:
                found = survey(self.app).chords
                chords = {chord.id: Seen.of(chord.found) for chord in found}
                look = Look(chords, "", time.time(), time.time() - started)
            except Exception as exc:  # noqa: BLE001 - it is told
                look = Look({}, masking.told(exc), time.time(), time.time() - started)
            before, self._look = self._look, look
            if not look.problem:
                gone = [seen for id_, seen in before.chords.items() if id_ not in look.chords]
                self._keep(gone[-REMEMBERED:])
            with self._lock:
                if not self._is_wanted_again:
                    self._is_looking = False
                    return
