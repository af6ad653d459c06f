"""What the members of a chord gave: in their stored results, or brought along by parts.

Beside results a part brings along what is stored nowhere else: the result of a member that ignores
it. To a store of the ledger's own each part does, and what is stored elsewhere is asked for members
alone that were not counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from celery import states
from kombu.utils.encoding import ensure_bytes

from ..errors import OUTSIDE
from ..upstream.results import (
    Results,
    StoredResult,
    read_results,
    ready_results,
    ready_states,
    unreadable,
)
from .checked import ChordUnreadable, in_a_line
from .model import Claim, Ledger, Outstanding, Part
from .packing import Header, leaf_ids

__all__ = ("LedgerOfMembers",)


class LedgerOfMembers(Ledger):
    """A ledger that keeps which members were counted, and a result only if nothing else does."""

    @abstractmethod
    def counted_in(self, group_ids: Sequence[str]) -> Mapping[str, set[str]]:
        """Return the ids of the members that were counted in each of the chords."""

    @abstractmethod
    def plain_members(self, group_id: str) -> set[str]:
        """Return the ids of the members that were counted and brought no result along."""

    @abstractmethod
    def payloads(self, group_id: str) -> Mapping[str, bytes]:
        """Return what parts brought along, by task id (see :class:`.model.Part`)."""

    def part_of(self, request: Any, state: str, result: Any, *, is_ignored: bool) -> Part:
        has_failed = state in states.PROPAGATE_STATES
        is_kept = is_ignored or self.is_own
        payload = self._payload(state, result) if is_kept else None
        return Part(request.id, payload, has_failed=has_failed)

    def part_from(self, result: StoredResult, index: int) -> Part:
        payload = self._payload(result.state, result.value) if self.is_own else None
        return Part(result.task_id, payload, has_failed=result.failed)

    def _payload(self, state: str, value: Any) -> bytes:
        """Return what a part brings along: the state and the result of its member, encoded."""
        encoded = self.backend.encode([state, self.backend.encode_result(value, state)])
        payload: bytes = ensure_bytes(encoded)  # type: ignore[no-untyped-call]
        return payload

    def outstanding(self, headers: Mapping[str, Header]) -> dict[str, Outstanding]:
        counted = self.counted_in(list(headers))
        rest = {
            group_id: list(dict.fromkeys(i for i in leaf_ids(header) if i not in counted[group_id]))
            for group_id, header in headers.items()
        }
        ready = self._done([id_ for ids in rest.values() for id_ in ids])
        return {group_id: Outstanding.of(ids, ready) for group_id, ids in rest.items()}

    def _done(self, ids: Sequence[str]) -> Mapping[str, StoredResult]:
        """Return the results of those members that are done; with values if parts bring them."""
        if self.is_own:
            return ready_results(self.results, ids)
        ready = ready_states(self.results, ids)
        return {id_: StoredResult(id_, state, None) for id_, state in ready.items()}

    def vanished(self, group_id: str, header: Header) -> list[str]:
        # What a part brought along is kept beside it.
        counted = self.plain_members(group_id)
        ids = [task_id for task_id in leaf_ids(header) if task_id in counted]
        ready = ready_states(self.results, ids)
        return [task_id for task_id in dict.fromkeys(ids) if task_id not in ready]

    def collect(self, claim: Claim) -> tuple[Header, Results]:
        header = claim.header
        if header is None:
            raise ChordUnreadable("its members are not known: its header is missing or damaged")
        ids = list(leaf_ids(header))
        if self.is_own:
            ready = self._brought_along(claim.group_id)
            # One that is settled may have members that were not counted.
            missing = [task_id for task_id in ids if task_id not in ready]
            for result in ready_results(self.results, missing).values():
                ready.add(*result)
            return header, ready
        results = read_results(self.results, ids)
        if results.have_succeeded(ids):
            return header, results
        ready = Results(result for result in results.values() if result.is_ready)
        if len(ready) < len(set(ids)):
            for result in self._brought_along(claim.group_id).values():
                ready.add(*result)
        return header, ready

    def _brought_along(self, group_id: str) -> Results:
        """Return the results that parts brought along."""
        return Results(self._brought(*kept) for kept in self.payloads(group_id).items())

    def _brought(self, task_id: str, payload: Any) -> StoredResult:
        """Return the result that a part brought along."""
        try:
            state, value = self.backend.decode(payload)
            return StoredResult(task_id, str(state), value)
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever was stored
            return unreadable(task_id, in_a_line(exc))
