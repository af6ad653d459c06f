"""How far chords are, as their keys on Redis tell: by one script for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from celery import states
from kombu.utils.encoding import bytes_to_str

from ..upstream.results import chunks
from .brief import BRIEF_FIELDS, brief_records
from .checked import Reader
from .model import Ledger, Record
from .scripts import ChordScripts
from .tallies import ENDED, Tally

__all__ = ("RedisTallies",)

#: What is read of a chord's record; it has the last one for certain.
_FIELDS = ("size", "total", "created", "progressed", "seen", "failed", "lifetime")

#: The states of members that failed, as JSON.
_FAILED = json.dumps(sorted(states.PROPAGATE_STATES))


class RedisTallies(ChordScripts, Ledger):
    """Tells how far chords are, live ones and those that have ended."""

    def progress(self, ids: Sequence[str]) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        for chunk in chunks(ids):
            answers = self._run_over("progress", json.dumps(_FIELDS), chunk)
            for asked, answer in zip(chunk, answers, strict=True):
                if answer:
                    group_id, *told = json.loads(bytes_to_str(answer))  # type: ignore[no-untyped-call]
                    tell = self._ended if len(told) == 1 else self._live
                    found[asked] = tell(group_id, *told)
        return found

    def overview(self) -> list[Record]:
        fields = json.dumps(BRIEF_FIELDS)
        read = (
            (chunk, self._run_over("overview", fields, chunk)) for chunk in chunks(self.group_ids())
        )
        return [record for chunk, told in read for record in brief_records(chunk, told)]

    def note(self, group_id: str, now: float, returned: int) -> int:
        """Note what workers without the patches have counted; return how many members failed."""
        arguments = (now, returned, int(self.backend._chord_zset), _FAILED)
        return int(self._run("note", group_id, *arguments))

    def _live(
        self, group_id: str, fields: list[Any], parts: int, added: Any, size_key: Any, mark: Any
    ) -> Tally:
        now = time.time()
        reader = Reader(now)
        told_size, total, created, progressed, counted, failures, _ = fields
        size = reader.number("size", told_size)
        size = reader.number("total", total) if size is None else size
        seen = reader.number("seen", counted) or 0
        started = reader.moment("created", created) or now
        since = reader.moment("progressed", progressed) or started
        failed = reader.number("failed", failures) or 0
        # A worker without the patches that ends a chord deletes its parts, its size and the rest.
        is_over = mark == "done" or (size_key is False and added is False and parts < seen)
        if parts > seen and not is_over:
            since, failed = now, self.note(group_id, now, parts)
        if size is not None:
            size += reader.number("number of added members (.t)", added) or 0
        returned = max(parts, seen)
        if is_over:
            returned = max(returned, size or 0)
        return Tally(group_id, size, returned, failed, started, since, ENDED if is_over else None)

    @staticmethod
    def _ended(group_id: str, kept: list[Any]) -> Tally:
        now = time.time()
        reader = Reader(now)
        outcome, size, returned, failed, created, ended = kept
        until = reader.moment("ended", ended) or now
        return Tally(
            group_id,
            reader.number("size", size),
            reader.number("returned", returned) or 0,
            reader.number("failed", failed) or 0,
            reader.moment("created", created) or until,
            until,
            str(outcome),
        )
