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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from hashlib import sha1
from importlib.resources import files
from typing import Any
from uuid import uuid4

from celery import states
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from .. import backends
from ..backends import StoredResult
from . import model, rights
from .checked import Reader, header_in
from .model import (
    LONGEST_SECONDS,
    Claim,
    Header,
    Ledger,
    Outstanding,
    Part,
    Record,
    RecordLost,
    header_of,
    leaf_ids,
    new_token,
    pack,
)

__all__ = ("RedisLedger",)

logger = logging.getLogger("chordguard")

#: Seconds for which a late part finds that its chord has ended.
DONE_SECONDS = 300

#: Seconds for which the keys of a chord outlive the time after which it is settled.
SPARE_SECONDS = 3600

#: What Redis says of a key of another type.
WRONG_TYPE = "WRONGTYPE"

#: What is left of a chord that is due but has no record.
_LEFT = {
    "kept": "its record is gone, and it waits for a part, which brings its body along",
    "gone": "its record, its parts and its size are gone: nothing is known of it any more",
}

#: For how many members a script looks at once: nobody else is served meanwhile.
PORTION = 1000

#: What a warning begins with where Redis refuses what the ledger does.
COUNTED_BY_CELERY = "Chords are counted by Celery alone, not in the ledger"

#: What Redis says, in a script or to one, that it will say again. From Redis 7.2 on, and on Valkey,
#: a script without a right fails with other words than before.
REFUSALS = ("MISCONF", "unknown command", "user executing the script", "ACL failure in script")

#: What is read of a chord's record, beside its header and body; it has the last one for certain.
_FIELDS = ("size", "created", "progressed", "claimed_until", "seen", "reopened", "lifetime")


class RedisLedger(Ledger):
    """The live chords of one Redis result backend; see :class:`.model.Ledger`.

    Arguments:
        backend: Celery's `RedisBackend`, whose client and retry policy are used.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        #: What the keys of all groups begin with.
        self._groups: bytes = backend.get_key_for_group("-")[:-1]
        self._key = (backend.url, self._groups)

    def may_count(self) -> bool:
        return rights.may_count(self._key, self.refused, COUNTED_BY_CELERY)

    def refuse(self, exc: BaseException) -> bool:
        if not self._is_refusal(exc):
            return False
        refused = {"scripts": str(exc)}
        with suppress(Exception):
            refused = self.refused() or refused
        rights.stop_counting(self._key, refused, COUNTED_BY_CELERY)
        rights.tell(exc)
        return True

    def refused(self) -> dict[str, str]:
        try:
            names = self._run_once("rights", str(uuid4()), (int(self.backend._chord_zset),))
        except self.backend.redis.exceptions.ResponseError as exc:
            if not self._is_refusal(exc):
                raise
            return {"EVALSHA, or a write,": str(exc)}
        reason = "the ACL of this user"
        return {bytes_to_str(name): reason for name in names}  # type: ignore[no-untyped-call]

    def _is_refusal(self, exc: BaseException) -> bool:
        errors = self.backend.redis.exceptions
        kinds = (errors.NoPermissionError, errors.ReadOnlyError, errors.OutOfMemoryError)
        is_known = isinstance(exc, errors.ResponseError) and any(t in str(exc) for t in REFUSALS)
        return isinstance(exc, kinds) or is_known

    def open(
        self,
        group_id: str,
        header: Header | None,
        body: bytes | None,
        due: float,
        timeout: float | None,
        signatures: bytes | None = None,
    ) -> None:
        lifetime = _lifetime(timeout)
        text = "" if header is None else pack(header)
        kept = (text, body or "", signatures or "")
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
        return Part(request.id, self.backend.encode([1, request.id, state, encoded]), index)

    def part_from(self, result: StoredResult, index: int) -> Part:
        # That of one that could not be decoded is an exception.
        value = self.backend.encode_result(result.value, result.state)
        part = [1, result.task_id, result.state, value]
        return Part(result.task_id, self.backend.encode(part), str(index), is_recounted=True)

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
            _whole(model.CLAIM_SECONDS),
            int(self._is_celery_5_7),
        )
        what = bytes_to_str(answer[0])  # type: ignore[no-untyped-call]
        if what == "lost":
            raise RecordLost
        if what != "claimed":
            return None
        _, header, *parts = answer
        return Claim(group_id, token, header_in(header), *parts)

    def group_ids(self) -> list[str]:
        live = self._ask(self.backend.client.zrange, self._due, 0, -1)
        return [bytes_to_str(group_id) for group_id in live]  # type: ignore[no-untyped-call]

    def read_all(self, group_ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in backends.chunks(group_ids):
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
        size, created, progressed, claimed_until, counted, is_reopened = (
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
            self._run("note", group_id, now, max(returned, seen))
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
        kind = (int(self.backend._chord_zset), self.backend.get_key_for_task("-")[:-1])
        for portion in _portions(headers):
            values = [value for id_, ids in portion for value in (id_, len(ids), *ids)]
            answers = self._run("outstanding", "", *kind, *values)
            for (group_id, ids), answer in zip(portion, answers, strict=True):
                told, *stored = answer if isinstance(answer, list) else [answer]
                found[group_id] = self._outstanding(ids, json.loads(told), stored)
        return found

    def _outstanding(
        self, ids: Sequence[str], without: Iterable[str], stored: Sequence[Any]
    ) -> Outstanding:
        # Of an empty list the script makes an empty object.
        missing = set(without)
        uncounted: dict[str, StoredResult] = {}
        for task_id, payload in zip(map(bytes_to_str, stored[::2]), stored[1::2], strict=True):
            result = backends.stored_result(self.backend, task_id, payload)
            if result.is_ready:
                uncounted[task_id] = result
            else:
                missing.add(task_id)
        # A member may be in a header twice.
        in_order = dict.fromkeys(task_id for task_id in ids if task_id in missing)
        return Outstanding(tuple(in_order), tuple(uncounted.values()))

    def vanished(self, *_: Any) -> list[str]:
        return []  # what was counted is kept with the parts

    def failed(self, group_ids: Sequence[str]) -> dict[str, int]:
        names = json.dumps(sorted(states.PROPAGATE_STATES))
        found: dict[str, int] = {}
        for chunk in backends.chunks(group_ids):
            found.update(zip(chunk, self._run_over("failed", names, chunk), strict=True))
        return found

    def collect(self, claim: Claim) -> tuple[Header, dict[str, StoredResult]]:
        known = claim.parts
        parts = self._parts(claim.group_id) if known is None else self._decoded(known)
        results = {part.task_id: part for part in parts}
        header = claim.header
        if header is None:
            saved = self.backend.restore_group(claim.group_id)
            header = [part.task_id for part in parts] if saved is None else header_of(saved.results)
        ids = list(leaf_ids(header))
        missing = [task_id for task_id in ids if task_id not in results]
        if missing and len(parts) >= len(ids) == len(header):
            # All came, under other ids: they are taken as Celery takes them.
            return [part.task_id for part in parts], results
        found = backends.read_results(self.backend, missing)
        results.update((id_, result) for id_, result in found.items() if result.is_ready)
        return header, results

    def claim(self, group_id: str, token: str | None = None) -> Claim | None:
        token = token or new_token()
        now, seconds = time.time(), _whole(model.CLAIM_SECONDS)
        answer = self._run("claim", group_id, token, now, seconds)
        if answer is None:
            return None
        return Claim(group_id, token, header_in(answer[0]) if answer else None)

    def renew(self, claim: Claim) -> bool:
        return self._renew(claim, _whole(model.CLAIM_SECONDS))

    def release(self, claim: Claim) -> None:
        self._renew(claim, 0)

    def expire(self, is_gone: Callable[[str], bool]) -> int:
        # A chord that is claimed is due when the claim ends, at the latest.
        latest = time.time() + model.CLAIM_SECONDS + 1
        live = self._ask(self.backend.client.zrangebyscore, self._due, "-inf", latest)
        ids = [bytes_to_str(group_id) for group_id in live]  # type: ignore[no-untyped-call]
        expired = 0
        for chunk in backends.chunks(ids):
            keys = [self.key(group_id, ".c") for group_id in chunk]
            tokens = self._ask(self.backend.mget, keys)
            for group_id, token in zip(chunk, tokens, strict=True):
                text = bytes_to_str(token or b"")  # type: ignore[no-untyped-call]
                if text and text != "done" and is_gone(text):
                    # Rounded up, the claim would not have ended yet.
                    now = time.time() - 0.001
                    expired += self._run("renew", group_id, text, now, 0, f"{now:.3f}")
        return expired

    def close(self, group_id: str, *, has_failed: bool = False) -> None:
        # From 5.7 on Celery asks for the mark itself.
        values = (int(self._is_celery_5_7), 0, int(has_failed))
        self._run("close", group_id, DONE_SECONDS, *values)

    def abandon(self, group_id: str, *, is_known: bool) -> None:
        seconds = _expires(self.backend) if is_known else 0
        values = (seconds, int(self._is_celery_5_7), 1, 0)
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
        return bool(ids) and len(backends.ready_states(self.backend, ids)) == len(set(ids))

    @property
    def _is_celery_5_7(self) -> bool:
        return hasattr(type(self.backend), "_chord_cleanup_script")

    def _renew(self, claim: Claim, seconds: int) -> bool:
        return bool(self._run("renew", claim.group_id, claim.token, time.time(), seconds))

    def _parts(self, group_id: str) -> list[StoredResult]:
        """Read the parts that were counted, in header order where Celery keeps it."""
        client = self.backend.client
        read = client.zrange if self.backend._chord_zset else client.lrange
        arguments = (self.key(group_id, ".j"), 0, -1)
        stored = self.backend.ensure(self._healed, (group_id, partial(read, *arguments)))
        return self._decoded(stored)

    def _decoded(self, stored: Sequence[Any]) -> list[StoredResult]:
        parts = []
        for part in stored:
            # One that cannot be decoded does not tell whose it is: that member's stored result is
            # read in its place.
            with suppress(Exception):
                _, task_id, state, value = self.backend.decode(part)
                if isinstance(task_id, str) and isinstance(state, str):
                    parts.append(StoredResult(task_id, state, value))
        return parts

    @property
    def _due(self) -> bytes:
        """The key of the index of what is due."""
        return self.key("chordguard", ".due")

    def key(self, group_id: str, name: str) -> bytes:
        """Return a key of a chord, as Celery makes those that it counts on."""
        return self._groups + f"{group_id}{name}".encode()

    def _run_over(self, name: str, what: str, group_ids: Sequence[str]) -> Any:
        """Run a script over chords."""
        return self._run(name, "", int(self.backend._chord_zset), what, *group_ids)

    def _run(self, name: str, group_id: str, *values: Any) -> Any:
        """Run a script on a chord, with the backend's policy of retries.

        One that is about many is given an empty id.
        """
        run = partial(self._run_once, name, group_id, values)
        return self._ask(self._healed, group_id, run)

    def _ask(self, command: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a command answers, after the backend's retries; note what Redis refuses."""
        try:
            return self.backend.ensure(command, arguments)
        except self.backend.redis.exceptions.ResponseError as exc:
            self.refuse(exc)
            raise

    def _healed(self, group_id: str, operation: Callable[[], Any]) -> Any:
        """Return what an operation does; where a key of the chord has another type, without it."""
        try:
            return operation()
        except self.backend.redis.exceptions.ResponseError as exc:
            if not group_id or WRONG_TYPE not in str(exc):
                raise
            if not self._run_once("heal", group_id, (int(self.backend._chord_zset),)):
                raise
            logger.warning("Chord %s: a key of another type was deleted", group_id)
            return operation()

    def _run_once(self, name: str, group_id: str, values: Sequence[Any]) -> Any:
        text, digest = _script(name)
        client = self.backend.client
        arguments = (2, self._groups, self._due, group_id, *values)
        try:
            return client.evalsha(digest, *arguments)
        except self.backend.redis.exceptions.NoScriptError:
            return client.eval(text, *arguments)


@cache
def _script(name: str) -> tuple[str, str]:
    """Return the text and the digest of a script."""
    folder = files(__package__) / "lua"
    parts = (folder / f"{part}.lua" for part in ("prelude", name))
    text = "".join(part.read_text(encoding="utf-8") for part in parts)
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


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
