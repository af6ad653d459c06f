"""What a ledger says of a chord, whatever keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ChordguardError, is_from_outside
from . import claims
from .packing import Header
from .tallies import End, Tally

if TYPE_CHECKING:
    from ..upstream.results import Results, StoredResult

__all__ = (
    "LONGEST_SECONDS",
    "ChordUnknown",
    "Claim",
    "Ledger",
    "Outstanding",
    "Part",
    "Record",
    "RecordLost",
)

#: Seconds without progress after which what is kept of a chord that is never settled goes.
LONGEST_SECONDS = 30 * 86400


@dataclass(frozen=True)
class Part:
    """A member that is done.

    Attributes:
        task_id: The member.
        payload: Its result, encoded, where the ledger has to keep it.
        index: Its place in the header.
        is_recounted: Whether it was made from its stored result.
        has_failed: Whether the member failed, or was revoked.
    """

    task_id: str
    payload: bytes | None = None
    index: str = ""
    is_recounted: bool = False
    has_failed: bool = False


@dataclass(frozen=True)
class Record:
    """A live chord.

    Attributes:
        group_id: The id of its header.
        size: How many members it has; None until the last one is about to be sent.
        returned: How many of them are done, each counted once.
        created: When it started (Unix time).
        progressed: When the last member was counted, or it started (Unix time).
        claimed_until: Until when somebody ends it, or ended it and died (Unix time); 0: nobody.
        header: The members' ids; None where those of a generator are not known yet.
        body: The packed signature of the body.
        failed: How many of those that are done failed, or were revoked.
        is_over: Whether its parts and its size are gone, as where a worker without the patches
            has ended it.
        lost: What the store has lost of it ("record", "parts", "size"), which it does not prove to
            be gone because the chord ended.
        damage: What of it cannot be read, in a sentence; None: nothing.
    """

    group_id: str
    size: int | None
    returned: int
    created: float
    progressed: float
    claimed_until: float
    header: Header | None
    body: bytes | None
    failed: int = 0
    is_over: bool = False
    lost: tuple[str, ...] = ()
    damage: str | None = None

    @property
    def is_complete(self) -> bool:
        """Tell whether all members were counted."""
        return self.size is not None and self.returned >= self.size


class ChordUnknown(ChordguardError):
    """A part is one of a chord that is not in the ledger, or not yet."""


class RecordLost(ChordguardError):
    """A part of a chord was counted whose record the store has lost; it may be written anew."""


@dataclass(frozen=True)
class Outstanding:
    """The members of a live chord that were not counted.

    Attributes:
        missing: The ids of those that are not done, as far as their results tell.
        uncounted: The results of those that are; on SQL without their values.
    """

    missing: tuple[str, ...] = ()
    uncounted: tuple[StoredResult, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[str], ready: Mapping[str, StoredResult]) -> Outstanding:
        """Return which of the members `ids`, each named once, are `ready`, and which are not."""
        missing = tuple(task_id for task_id in ids if task_id not in ready)
        return cls(missing, tuple(ready[task_id] for task_id in ids if task_id in ready))


@dataclass(frozen=True)
class Claim:
    """The right to end a chord, for :data:`CLAIM_SECONDS` or until it is renewed.

    Attributes:
        group_id: The chord.
        token: By which the ledger knows who has it.
        header: The members' ids; None where the ledger does not know them.
        parts: The parts that were counted, where the ledger told them at once; `collect` empties
            it, so that a large chord is not held in memory twice.
    """

    group_id: str
    token: str
    header: Header | None
    parts: deque[Any] = field(default_factory=deque)


class Ledger(ABC):
    """Where live chords are counted. Methods raise what the driver raises after its retries."""

    #: The store: a backend of Celery's, whose connections and retries are used.
    backend: Any
    #: The result backend of the app, which knows the results of bodies and of uncounted members.
    results: Any

    @property
    def is_own(self) -> bool:
        """Tell whether the store is none of results.

        Then each part brings its result along, and the ledger knows all chords whose parts come.
        """
        return self.results is not self.backend

    @property
    def has_safety_net(self) -> bool:
        """Tell whether each chord has a late `celery.chord_unlock`."""
        return False

    def is_usable(self) -> bool:
        """Tell whether there is a place to keep chords; create it if need be."""
        return True

    def is_there(self) -> bool:
        """Tell whether there is a place to keep chords; create nothing."""
        return True

    @abstractmethod
    def may_count(self) -> bool:
        """Tell whether the server lets chords be counted, as far as is known; warn once if not."""

    @abstractmethod
    def refuse(self, exc: BaseException) -> bool:
        """Stop counting for a while if `exc` says that the server refuses it, and warn once.

        Returns:
            Whether it does; such an exception need not be logged again (see :mod:`.rights`).
        """

    @abstractmethod
    def refused(self) -> Mapping[str, str]:
        """Return what the server refuses to do for the ledger, and its reason for each.

        Nothing is changed for it.
        """

    def keep_engine(self) -> None:
        """Keep a connection between calls in this thread, outside the children of a pool, too."""
        return

    def pause(self) -> None:
        """Give back what this thread holds between two looks of a watchdog."""
        return

    @abstractmethod
    def open(
        self,
        group_id: str,
        header: Header | None,
        body: bytes | None,
        due: float,
        timeout: float | None,
        signatures: bytes | None = None,
        body_id: str | None = None,
    ) -> None:
        """Start to count a chord.

        Arguments:
            group_id: The id of the header.
            header: The members' ids; None where they are not known yet.
            body: The packed signature of the body.
            due: When the watchdog looks at it for the first time (Unix time).
            timeout: Seconds without progress after which it is settled; None: never.
            signatures: The packed signatures of its members, if they are kept.
            body_id: The id of the result that the body gives, by which it can be found, too.
        """

    @abstractmethod
    def set_header(self, group_id: str, header: Header) -> None:
        """Tell the members of a chord that was opened without them."""

    @abstractmethod
    def add(self, group_id: str, header: Header) -> bool:
        """Add members to a live chord; return False when it takes none."""

    @abstractmethod
    def part_of(self, request: Any, state: str, result: Any, *, is_ignored: bool) -> Part:
        """Return the part that a task returns; `is_ignored`: its result is stored nowhere else."""

    @abstractmethod
    def part_from(self, result: StoredResult, index: int) -> Part:
        """Return the part that somebody failed to return; `index` is its place in the header."""

    @abstractmethod
    def count(self, group_id: str, part: Part, token: str | None = None) -> Claim | None:
        """Count a part, unless it was counted before.

        Arguments:
            group_id: The chord.
            part: The member.
            token: That of the claim, if it is given; a new one otherwise.

        Returns:
            The claim on the chord when the part was the last one and nobody else ends it.

        Raises:
            RecordLost: It was counted, but nothing else is known of its chord any more.
            ChordUnknown: It was not, since the chord is not here and the store is the ledger's own.
        """

    @abstractmethod
    def reopen(self, group_id: str, body: bytes, due: float, timeout: float | None) -> bool:
        """Write the record of a chord anew, as far as one of its members knows it.

        The arguments are those of `open`. False where that is not needed.
        """

    @abstractmethod
    def group_ids(self) -> list[str]:
        """Return the ids of all live chords."""

    def read(self, group_id: str) -> Record | None:
        """Return what is known of a live chord; None for one that has ended, or is unknown."""
        return self.read_all([group_id]).get(group_id)

    @abstractmethod
    def read_all(self, group_ids: Sequence[str]) -> dict[str, Record]:
        """Return what is known of those of `group_ids` that are live, by id."""

    @abstractmethod
    def progress(self, ids: Sequence[str]) -> dict[str, Tally]:
        """Return how far chords are: one command, or one statement, for all of them.

        Arguments:
            ids: Those of their headers, or of the results that their bodies give.

        Returns:
            What is known of live chords, and for ``result_expires`` of those that have ended, by
            the id that was asked for.
        """

    @abstractmethod
    def overview(self) -> list[Record]:
        """Return how far all live chords are, for whom shows many of them.

        The records are without header and body, and may leave out what takes longer to find out.
        """

    @abstractmethod
    def signatures(self, group_id: str) -> bytes | None:
        """Return the packed signatures of a live chord's members, if they were kept."""

    @abstractmethod
    def outstanding(self, headers: Mapping[str, Header]) -> dict[str, Outstanding]:
        """Return which members of live chords were not counted.

        Arguments:
            headers: The members of each chord, by the id of its header.
        """

    @abstractmethod
    def vanished(self, group_id: str, header: Header) -> list[str]:
        """Return the members that were counted and whose results are gone."""

    @abstractmethod
    def collect(self, claim: Claim) -> tuple[Header, Results]:
        """Return the members' ids, and the results of those that are ready."""

    @abstractmethod
    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        """Claim a chord, with `token`; None when it is not there or somebody else ends it."""

    @abstractmethod
    def renew(self, claim: Claim) -> bool:
        """Keep a claim for another :data:`CLAIM_SECONDS`; False when somebody else has it."""

    @abstractmethod
    def release(self, claim: Claim) -> None:
        """Give a claim back."""

    @abstractmethod
    def expire(self, is_gone: Callable[[str], bool]) -> int:
        """End the claims that nobody holds any more, now; return how many.

        Arguments:
            is_gone: Tells by its token that a claim is such; called after the claims were read.
        """

    @contextmanager
    def asking(self, group_id: str) -> Iterator[str]:
        """Yield a token for the claim on a chord that the block asks for, and ends if it gets it.

        Whatever interrupts that from outside, the claim is given back.
        """
        token = claims.new_token()
        try:
            yield token
        except BaseException as exc:
            if is_from_outside(exc):
                with suppress(Exception):
                    self.release(Claim(group_id, token, None))
            raise

    def release_all(self) -> int:
        """End the claims of this worker and its children; return how many."""
        return self.expire(lambda token: token.startswith(claims.owner))

    @abstractmethod
    def close(self, group_id: str, end: End | None = None) -> None:
        """Forget a chord that has ended, but for how: `progress` tells that for `result_expires`.

        What the members of one that failed returned can be read for some minutes more, where
        Celery leaves it to be read.

        Arguments:
            group_id: The chord.
            end: How it ended; None: nothing of it is kept.
        """

    @abstractmethod
    def abandon(self, group_id: str, *, is_known: bool) -> None:
        """Forget a chord that was not sent completely, and never will be.

        Arguments:
            group_id: The chord.
            is_known: Whether members of it may have been sent, whose parts find it closed.
        """

    @abstractmethod
    def take_due(self, now: float, until: float, limit: int) -> list[str]:
        """Return up to `limit` chords that are due; keep others from looking before `until`."""

    @abstractmethod
    def look_again(self, group_id: str, due: float) -> str | None:
        """Have the watchdog look at a live chord again at `due` (Unix time).

        Returns:
            For a chord that was due but has no record any more: what of it is there all the same,
            in a sentence; None for any other.
        """
