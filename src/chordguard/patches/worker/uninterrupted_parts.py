"""A soft time limit that strikes after the task's own code, while its part is counted.

The pool's timer does not know that the task is over: the exception comes out of the storing of the
result, of the counting, or of the end of the chord. Then the part is lost, the chord is claimed by
nobody, or fails with the error of another task's limit, and a connection is used again from which
half an answer was read. Here the limit ends with the task's own code; a signal that tells the
process to end waits until its part is counted.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...engine.patch import Defect, Patch
from ...ledger import claims

patch = Patch(
    "uninterrupted_parts",
    Defect(
        "B18", "a soft time limit strikes while a part is counted: its chord is lost, or ends late"
    ),
)

#: What the pool sends to a child at a soft time limit, and when it is to end.
#: There is none of the first on Windows, where the pool has no soft time limits.
SOFT_LIMIT: int = getattr(signal, "SIGUSR1", signal.SIGTERM)
SIGNALS = tuple({SOFT_LIMIT, signal.SIGTERM})


@patch.wraps("celery.backends.base", "Backend.mark_as_done", takes={"request": 2})
def mark_as_done(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any) -> Any:
    return _undisturbed(request, wrapped, args, kwargs)


@patch.wraps("celery.backends.base", "Backend.mark_as_failure", takes={"request": 3})
def mark_as_failure(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any) -> Any:
    return _undisturbed(request, wrapped, args, kwargs)


def _undisturbed(request: Any, wrapped: Any, args: Any, kwargs: Any) -> Any:
    if request is None or not request.chord:
        return wrapped(*args, **kwargs)
    with held_off():
        return wrapped(*args, **kwargs)


@contextmanager
def held_off() -> Iterator[None]:
    """Keep the pool's signals from this process, a child of it, until the block ends.

    That of a soft time limit is dropped, others are sent again then.
    """
    is_child = claims.pool_process == os.getpid()
    if not is_child or threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread alone.
        yield
        return
    waiting: list[int] = []
    handlers: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not None:  # it is not of this interpreter
                handlers[number] = signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            if number != SOFT_LIMIT or number == signal.SIGTERM:
                os.kill(os.getpid(), number)
