"""Claims on chords: their tokens, and the thread that renews those that this process holds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

__all__ = (
    "CLAIM_SECONDS",
    "Keeper",
    "held",
    "new_owner",
    "new_token",
    "origin",
    "process_mark",
)

#: Seconds for which the one who ends a chord keeps others from doing so, unless it is renewed.
CLAIM_SECONDS = 60.0

#: How many characters of a token say which worker it is of, and which process of its pool.
OWNER_LENGTH, PROCESS_LENGTH = 12, 8

#: How many characters a token has.
TOKEN_LENGTH = 36


def new_owner() -> str:
    """Return what the tokens of a worker begin with."""
    return uuid4().hex[:OWNER_LENGTH]


#: Whose tokens this process makes: its own, or those of the worker that it is a child of.
owner = new_owner()

#: The id of this process, once it works in a pool. A process that is forked from it inherits the
#: value, and is told by its own id not to be meant.
pool_process = 0


def new_token() -> str:
    """Return a token for a claim, which begins with its :func:`origin`."""
    process = pool_process if pool_process == os.getpid() else 0
    return (owner + process_mark(process) + uuid4().hex)[:TOKEN_LENGTH]


def origin(token: str) -> tuple[str, str]:
    """Return the owner of a token, and which process of its pool made it (see `process_mark`)."""
    return token[:OWNER_LENGTH], token[OWNER_LENGTH : OWNER_LENGTH + PROCESS_LENGTH]


def process_mark(process: int) -> str:
    """Return what names a process in a token; 0: none of the pool."""
    return f"{process:0{PROCESS_LENGTH}x}"


class _Held:
    """A claim that is held; `renew` renews it, or returns False where somebody else has it."""

    def __init__(self, renew: Callable[[], bool]) -> None:
        self._renew = renew
        self._renewed = time.monotonic()

    def is_ours(self, at_once: bool = False) -> bool:
        """Tell whether it still is ours; told to, ask even if it is not yet time to renew it."""
        now = time.monotonic()
        if now - self._renewed < _pause() and not at_once:
            return True
        if not self._renew():
            return False
        self._renewed = now
        return True


class Keeper:
    """Renews claims from a thread that ends when there was none for a while.

    Chords end too often to start a thread for each.
    """

    _lock: threading.Lock
    _claims: set[_Held]
    _thread: threading.Thread | None

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            # The thread stays behind in the parent.
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def held(self, renew: Callable[[], bool]) -> Iterator[Callable[..., bool]]:
        """Keep a claim for as long as the block takes; yield what tells whether it still is ours.

        Arguments:
            renew: Renews it; returns False where somebody else has it, and raises nothing.
        """
        claim = _Held(renew)
        with self._lock:
            self._claims.add(claim)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="chordguard-claims", daemon=True
                )
                self._thread.start()
        try:
            yield claim.is_ours
        finally:
            with self._lock:
                self._claims.discard(claim)

    def _run(self) -> None:
        while True:
            time.sleep(_pause())
            with self._lock:
                held = list(self._claims)
                if not held:
                    self._thread = None
                    return
            for claim in held:
                if claim in self._claims:
                    claim.is_ours()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._claims = set()
        self._thread = None


def _pause() -> float:
    """Return the seconds between two renewals."""
    return CLAIM_SECONDS / 3


held = Keeper().held
