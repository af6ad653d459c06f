"""The ledger of a Redis result backend: Celery's own keys, a hash for each chord, an index.

Parts are counted on the keys that Celery counts them on, so that workers without the patches,
and of other versions, share a chord. Each operation is one round trip: a script, or a pipeline.
The hash, which is there only if the chord was started with the patches, holds what Celery keeps
nowhere; the sorted set of what is due tells the watchdog which chords to look at. Every key
expires; a live chord's keys live on as parts come and it is looked at.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from celery import states
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from ..signals import FAILED
from ..upstream.decoding import decoded
from ..upstream.results import (
    Results,
    StoredResult,
    chunks,
    ready_results,
    ready_states,
    stored_result,
)
from . import claims
from .checked import Reader, header_in
from .claims import new_token
from .model import (
    LONGEST_SECONDS,
    ChordUnknown,
    Claim,
    Outstanding,
    Part,
    Record,
    RecordLost,
)
from .packing import Header, header_of, leaf_ids, pack
from .redis_tallies import RedisTallies
from .tallies import End

__all__ = ("RedisLedger",)

logger = logging.getLogger("chordguard")

#: Seconds for which a late part finds that its chord has ended.
DONE_SECONDS = 300

#: Seconds for which the keys of a chord outlive the time after which it is settled.
SPARE_SECONDS = 3600

#: What is left of a chord that is due but has no record.
_LEFT = {
    "kept": "its record is gone, and it waits for a part, which brings its body along",
    "gone": "its record, its parts and its size are gone: nothing is known of it any more",
}

#: For how many members a script looks at once: nobody else is served meanwhile.
PORTION = 1000

#: What is read of a chord's record, beside its header and body; it has the last one for certain.
_FIELDS = (
    *("size", "created", "progressed", "claimed_until", "seen", "failed", "reopened"),
    "lifetime",
)


class RedisLedger(RedisTallies):
    """The live chords in one Redis, that of the results or the ledger's own.

    Arguments:
        backend: Celery's `RedisBackend`, whose client and retry policy are used.
        results: The result backend of the app, where it is another one.
    """

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
        lifetime = _lifetime(timeout)
        text = "" if header is None else pack(header)
        total = "" if header is None else len(set(leaf_ids(header)))
        # Beside results it is told as by Celery, just before the last member is sent.
        size = total if self.is_own else ""
        kept = (text, body or "", signatures or "", size, body_id or "", total)
        self._run("open", group_id, time.time(), due, lifetime, *kept)

    def reopen(self, group_id: str, body: bytes, due: float, timeout: float | None) -> bool:
        values = (time.time(), due, _lifetime(timeout), body)
        return bool(self._run("reopen", group_id, *values))

    def set_size(self, group_id: str, size: int, header: Header | None = None) -> None:
        """Tell how many members a chord has, and which where it was opened without them."""
        text = "" if header is None else pack(header)
        self._run("size", group_id, size, _expires(self.backend), text)

    def set_header(self, group_id: str, header: Header) -> None:
        self.set_size(group_id, len(set(leaf_ids(header))), header)

    def add(self, group_id: str, header: Header) -> bool:
        size, expires = len(list(leaf_ids(header))), _expires(self.backend)
        return bool(self._run("add", group_id, size, pack(header), expires))

    def part_of(self, request: Any, state: str, result: Any, *, is_ignored: bool) -> Part:
        index = "+inf" if request.group_index is None else str(request.group_index)
        encoded = self.backend.encode_result(result, state)
        payload = self.backend.encode([1, request.id, state, encoded])
        return Part(request.id, payload, index, has_failed=state in states.PROPAGATE_STATES)

    def part_from(self, result: StoredResult, index: int) -> Part:
        # That of one that could not be decoded is an exception.
        value = self.backend.encode_result(result.value, result.state)
        payload = self.backend.encode([1, result.task_id, result.state, value])
        place = str(index)
        return Part(result.task_id, payload, place, is_recounted=True, has_failed=result.failed)

    def count(self, group_id: str, part: Part, token: str | None = None) -> Claim | None:
        token = token or new_token()
        answer = self._run(
            "count",
            group_id,
            part.task_id,
            part.payload,
            part.index,
            int(part.is_recounted),
            int(self.backend._chord_zset),
            _expires(self.backend),
            getattr(self.backend, "_chord_result_expires", None) or 0,
            time.time(),
            token,
            _whole(claims.CLAIM_SECONDS),
            int(self._is_celery_5_7),
            int(part.has_failed),
            int(self.is_own),
        )
        what = bytes_to_str(answer[0])  # type: ignore[no-untyped-call]
        if what == "lost":
            raise RecordLost
        if what == "unknown":
            raise ChordUnknown(group_id)
        if what != "claimed":
            return None
        _, header, *parts = answer
        return Claim(group_id, token, header_in(header), *map(deque, parts))

    def group_ids(self) -> list[str]:
        live = self._ask(self.backend.client.zrange, self._due, 0, -1)
        return [bytes_to_str(group_id) for group_id in live]  # type: ignore[no-untyped-call]

    def read_all(self, group_ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in chunks(group_ids):
            answers = self._run_over("records", json.dumps(_FIELDS), chunk)
            for group_id, answer in zip(chunk, answers, strict=True):
                if answer is not None:
                    found[group_id] = self._record(group_id, *answer)
        return found

    def _record(self, group_id: str, told: bytes | str, packed_header: Any, body: Any) -> Record:
        text = told.decode(errors="replace") if isinstance(told, bytes) else told
        # What is not there is False.
        fields, returned, sized, added, claimed_by, claimed_for, damage = json.loads(text)
        now = time.time()
        reader = Reader(now, damage or None)
        size, created, progressed, claimed_until, counted, failures, is_reopened = (
            fields[:-1] if fields else (False,) * (len(_FIELDS) - 1)
        )
        header = reader.header(packed_header)
        size = reader.number("size", size)
        seen = reader.number("seen", counted) or 0
        returned = int(returned)
        reader.number("size (.s)", sized)
        more = reader.number("number of added members (.t)", added) or 0
        until = reader.moment("claimed_until", claimed_until) or 0.0
        started = reader.moment("created", created)
        since = reader.moment("progressed", progressed)
        if since is None:
            since = started
        is_marked = claimed_by == "done"
        is_cut = sized is False and size is not None and (returned < seen or returned < size)
        # They deleted the parts, and the size; and what was added, which is there from the start.
        is_over = is_marked or (is_cut and added is False)
        is_proven = is_marked or (is_over and self._are_ready(header))
        if is_over and not is_proven and returned >= seen:
            is_over = False
        if since is None or (returned > seen and not is_over):
            # Workers without the patches have counted it; or nobody knows when it was counted.
            since = now
            failures = self.note(group_id, now, max(returned, seen))
        lost = ["record"] if is_reopened else []
        if not is_proven:
            lost += ["parts"] if returned < seen else []
            lost += ["size"] if sized is False and size is not None else []
        if is_over:
            until = 0.0
        elif claimed_for > 0:
            until = now + claimed_for / 1000
        return Record(
            group_id,
            None if size is None else size + more,
            returned,
            since if started is None else started,
            since,
            until,
            header,
            reader.body(body),
            failed=reader.number("failed", failures) or 0,
            is_over=is_over,
            lost=tuple(lost),
            damage=reader.damage,
        )

    def signatures(self, group_id: str) -> bytes | None:
        record = self.key(group_id, ".chordguard")
        found = self.backend.ensure(self.backend.client.hget, (record, "signatures"))
        return None if found is None else ensure_bytes(found)  # type: ignore[no-untyped-call]

    def outstanding(self, headers: Mapping[str, Header]) -> dict[str, Outstanding]:
        found: dict[str, Outstanding] = {}
        # In a store of its own nothing begins with an empty text and is the id of a task.
        results = "" if self.is_own else self.backend.get_key_for_task("-")[:-1]
        kind = (int(self.backend._chord_zset), results)
        for portion in _portions(headers):
            values = [value for id_, ids in portion for value in (id_, len(ids), *ids)]
            answers = self._run("outstanding", "", *kind, *values)
            for (group_id, ids), answer in zip(portion, answers, strict=True):
                told, *stored = answer if isinstance(answer, list) else [answer]
                found[group_id] = self._outstanding(ids, json.loads(told), stored)
        return self._with_results(found) if self.is_own else found

    def _with_results(self, found: Mapping[str, Outstanding]) -> dict[str, Outstanding]:
        """Look for results of missing members where they are stored, which is not here."""
        ids = [task_id for outstanding in found.values() for task_id in outstanding.missing]
        ready = ready_results(self.results, ids)
        return {id_: Outstanding.of(each.missing, ready) for id_, each in found.items()}

    def _outstanding(
        self, ids: Sequence[str], without: Iterable[str], stored: Sequence[Any]
    ) -> Outstanding:
        # Of an empty list the script makes an empty object.
        missing = set(without)
        uncounted: dict[str, StoredResult] = {}
        for task_id, payload in zip(map(bytes_to_str, stored[::2]), stored[1::2], strict=True):
            result = stored_result(self.backend, task_id, payload)
            if result.is_ready:
                uncounted[task_id] = result
            else:
                missing.add(task_id)
        # A member may be in a header twice.
        in_order = dict.fromkeys(task_id for task_id in ids if task_id in missing)
        return Outstanding(tuple(in_order), tuple(uncounted.values()))

    def vanished(self, *_: Any) -> list[str]:
        return []  # what was counted is kept with the parts

    def collect(self, claim: Claim) -> tuple[Header, Results]:
        parts = self._decoded(claim.parts) if claim.parts else self.parts(claim.group_id)
        header = claim.header
        if header is None:
            saved = self.backend.restore_group(claim.group_id)
            header = None if saved is None else header_of(saved.results)
        return self.collected(header, parts)

    def collected(self, header: Header | None, parts: Results) -> tuple[Header, Results]:
        """Return the members' ids and results, given the `parts` that were counted.

        Without a `header` the members are those that returned a part.
        """
        if header is None:
            return list(parts), parts
        missing = [task_id for task_id in leaf_ids(header) if task_id not in parts]
        if missing and len(parts) >= sum(1 for _ in leaf_ids(header)) == len(header):
            # All came, under other ids: they are taken as Celery takes them.
            return list(parts), parts
        for result in ready_results(self.results, missing).values():
            parts.add(*result)
        return header, parts

    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        token = token or new_token()
        now, seconds = time.time(), _whole(claims.CLAIM_SECONDS)
        answer = self._run("claim", group_id, token, now, seconds)
        if answer is None:
            return None
        return Claim(group_id, token, header_in(answer[0]) if answer else None)

    def renew(self, claim: Claim) -> bool:
        return self._renew(claim, _whole(claims.CLAIM_SECONDS))

    def release(self, claim: Claim) -> None:
        self._renew(claim, 0)

    def expire(self, is_gone: Callable[[str], bool]) -> int:
        # A chord that is claimed is due when the claim ends, at the latest.
        latest = time.time() + claims.CLAIM_SECONDS + 1
        live = self._ask(self.backend.client.zrangebyscore, self._due, "-inf", latest)
        ids = [bytes_to_str(group_id) for group_id in live]  # type: ignore[no-untyped-call]
        expired = 0
        for chunk in chunks(ids):
            keys = [self.key(group_id, ".c") for group_id in chunk]
            tokens = self._ask(self.backend.mget, keys)
            for group_id, token in zip(chunk, tokens, strict=True):
                text = bytes_to_str(token or b"")  # type: ignore[no-untyped-call]
                if text and text != "done" and is_gone(text):
                    # Rounded up, the claim would not have ended yet.
                    now = time.time() - 0.001
                    expired += self._run("renew", group_id, text, now, 0, f"{now:.3f}")
        return expired

    def close(self, group_id: str, end: End | None = None) -> None:
        # From 5.7 on Celery asks for the mark itself.
        values: tuple[Any, ...] = (int(self._is_celery_5_7), 0)
        if end is not None:
            failed = "" if end.failed is None else end.failed
            values += (int(end.outcome == FAILED), time.time(), end.outcome, failed)
            values += (int(self.backend.expires or LONGEST_SECONDS),)
        self._run("close", group_id, DONE_SECONDS, *values)

    def abandon(self, group_id: str, *, is_known: bool) -> None:
        seconds = _expires(self.backend) if is_known else 0
        values = (seconds, int(self._is_celery_5_7), 1)
        # Once: somebody waits for an error.
        self._run_once("close", group_id, values)

    def take_due(self, now: float, until: float, limit: int) -> list[str]:
        taken = self._run("due", "", now, until, limit)
        return [bytes_to_str(group_id) for group_id in taken]  # type: ignore[no-untyped-call]

    def look_again(self, group_id: str, due: float) -> str | None:
        left = bytes_to_str(self._run("look", group_id, due))  # type: ignore[no-untyped-call]
        return _LEFT.get(left)

    def _are_ready(self, header: Header | None) -> bool:
        ids = list(leaf_ids(header or ()))
        return bool(ids) and len(ready_states(self.results, ids)) == len(set(ids))

    def _renew(self, claim: Claim, seconds: int) -> bool:
        return bool(self._run("renew", claim.group_id, claim.token, time.time(), seconds))

    def parts(self, group_id: str) -> Results:
        """Read the parts that were counted, in header order where Celery keeps it."""
        client = self.backend.client
        read = client.zrange if self.backend._chord_zset else client.lrange
        arguments = (self.key(group_id, ".j"), 0, -1)
        return self._decoded(
            deque(self.backend.ensure(self._healed, (group_id, partial(read, *arguments))))
        )

    def _decoded(self, stored: deque[Any]) -> Results:
        parts = Results()
        for part in decoded(self.backend, stored):
            try:
                _, task_id, state, value = part
            except (TypeError, ValueError):
                continue
            if isinstance(task_id, str) and isinstance(state, str):
                parts.add(task_id, state, value)
        return parts


def _portions(headers: Mapping[str, Header]) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield (chord, its members' ids), in lists of some :data:`PORTION` members in all."""
    portion: list[tuple[str, list[str]]] = []
    room = PORTION
    for group_id, header in headers.items():
        portion.append((group_id, list(leaf_ids(header))))
        room -= len(portion[-1][1])
        if room <= 0:
            yield portion
            portion, room = [], PORTION
    if portion:
        yield portion


def _lifetime(timeout: float | None) -> int:
    """Return after how many seconds the keys of a chord expire that is settled after `timeout`."""
    return int(timeout + SPARE_SECONDS) if timeout else LONGEST_SECONDS


def _expires(backend: Any) -> int:
    """Return after how many seconds the keys of a chord that has no record expire."""
    return int(getattr(backend, "chord_expires", backend.expires) or LONGEST_SECONDS)


def _whole(seconds: float) -> int:
    return max(1, round(seconds))
