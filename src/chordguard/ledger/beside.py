"""What a ledger does that lies beside the stored results, and reads them there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from celery import states
from kombu.utils.encoding import ensure_bytes

from ..errors import OUTSIDE
from ..upstream.results import Results, StoredResult, read_results, ready_states, unreadable
from .checked import ChordUnreadable, in_a_line
from .model import Claim, Ledger, Outstanding, Part
from .packing import Header, leaf_ids

__all__ = ("BesideResults",)


class BesideResults(Ledger):
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
        if not is_ignored:
            return Part(request.id, has_failed=has_failed)
        payload = self.backend.encode([state, self.backend.encode_result(result, state)])
        return Part(request.id, ensure_bytes(payload), has_failed=has_failed)  # type: ignore[no-untyped-call]

    def part_from(self, result: StoredResult, index: int) -> Part:
        return Part(result.task_id, has_failed=result.failed)

    def outstanding(self, headers: Mapping[str, Header]) -> dict[str, Outstanding]:
        counted = self.counted_in(list(headers))
        rest = {
            group_id: list(dict.fromkeys(i for i in leaf_ids(header) if i not in counted[group_id]))
            for group_id, header in headers.items()
        }
        ready = ready_states(self.backend, [id_ for ids in rest.values() for id_ in ids])
        return {
            group_id: Outstanding(
                tuple(id_ for id_ in ids if id_ not in ready),
                tuple(StoredResult(id_, ready[id_], None) for id_ in ids if id_ in ready),
            )
            for group_id, ids in rest.items()
        }

    def vanished(self, group_id: str, header: Header) -> list[str]:
        # What a part brought along is kept beside it.
        counted = self.plain_members(group_id)
        ids = [task_id for task_id in leaf_ids(header) if task_id in counted]
        ready = ready_states(self.backend, ids)
        return [task_id for task_id in dict.fromkeys(ids) if task_id not in ready]

    def collect(self, claim: Claim) -> tuple[Header, Results]:
        header = claim.header
        if header is None:
            raise ChordUnreadable("its members are not known: its header is missing or damaged")
        ids = list(leaf_ids(header))
        results = read_results(self.backend, ids)
        if results.have_succeeded(ids):
            return header, results
        ready = Results(result for result in results.values() if result.is_ready)
        if len(ready) < len(set(ids)):
            for task_id, payload in self.payloads(claim.group_id).items():
                ready.add(*self._brought(task_id, payload))
        return header, ready

    def _brought(self, task_id: str, payload: Any) -> StoredResult:
        """Return the result that a part brought along."""
        try:
            state, value = self.backend.decode(payload)
            return StoredResult(task_id, str(state), value)
        except OUTSIDE:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever was stored
            return unreadable(task_id, in_a_line(exc))
