"""The claims that this process holds, renewed by one thread for as long as they are held."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .ledger import model

__all__ = ("Keeper", "held")


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
                claims = list(self._claims)
                if not claims:
                    self._thread = None
                    return
            for claim in claims:
                if claim in self._claims:
                    claim.is_ours()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._claims = set()
        self._thread = None


def _pause() -> float:
    """Return the seconds between two renewals."""
    return model.CLAIM_SECONDS / 3


held = Keeper().held
