"""Lua scripts on the keys of chords: run by their digest, retried, healed where a key is bad."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from hashlib import sha1
from importlib.resources import files
from typing import Any
from uuid import uuid4

from kombu.utils.encoding import bytes_to_str

from ..log import mark_reported
from . import rights

__all__ = ("ChordScripts",)

logger = logging.getLogger("chordguard")

#: What Redis says of a key of another type.
WRONG_TYPE = "WRONGTYPE"

#: What a warning begins with where Redis refuses what the ledger does.
COUNTED_BY_CELERY = "Chords are counted by Celery alone, not in the ledger"

#: What Redis says, in a script or to one, that it will say again. From Redis 7.2 on, and on Valkey,
#: a script without a right fails with other words than before.
REFUSALS = ("MISCONF", "unknown command", "user executing the script", "ACL failure in script")


class ChordScripts:
    """Runs scripts on the keys of chords on one Redis result backend.

    Arguments:
        backend: Celery's `RedisBackend`, whose client and retry policy are used.
        results: The result backend of the app, where it is another one.
    """

    def __init__(self, backend: Any, results: Any = None) -> None:
        self.backend = backend
        self.results = backend if results is None else results
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
        mark_reported(exc)
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

    @property
    def _is_celery_5_7(self) -> bool:
        return hasattr(type(self.backend), "_chord_cleanup_script")

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
            logger.warning("Chord %s: deleted a key of the wrong type", group_id)
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
