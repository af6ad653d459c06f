"""Which processes of this machine's workers have died, whose claims nobody renews any more.

A worker knows the children of its pool. Of other workers on the machine it learns from a file for
each, in a folder of the user's temporary files: a worker keeps its own locked, and so do its
children, which inherit the open file, until the last of them has ended. The kernel gives the lock
back, however they die. Where there is no such file (another machine, a container with files of its
own, Windows) nothing can be told, and the claim runs out by itself.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init

from ..ledger import claims

__all__ = (
    "Deaths",
    "be_worker",
    "forget_worker",
)

logger = logging.getLogger("chordguard")

#: How many looks ask for the claims of a process that has died: the last may be on its way still.
LOOKS = 2

#: Seconds after which the file of a worker that was found dead is removed: others know it by then.
KEPT_SECONDS = 3600.0

#: The process that is a worker with an owner of its own, and its open file; set by `be_worker`.
_worker: tuple[int, int | None] = (0, None)


def be_worker() -> None:
    """Give this process, and the children of the pool that it will have, an owner of its own."""
    global _worker
    if _worker[0] == os.getpid():
        return  # workers that share a process live as long as each other
    claims.owner = claims.new_owner()
    file = None
    try:
        file = _locked_file(claims.owner)
    except Exception as exc:  # noqa: BLE001 - it is logged
        logger.info("Other workers cannot detect the death of this one: %s", exc)
    _worker = (os.getpid(), file)


def forget_worker() -> None:
    """Remove the file of this process, which ends and has no claims any more."""
    with suppress(OSError):
        (_folder() / claims.owner).unlink()


def _folder() -> Path:
    if not hasattr(os, "getuid"):
        raise OSError("there are no file locks that children inherit")
    # Other users may write to the temporary files, not to what is in here.
    folder = Path(tempfile.gettempdir(), f"chordguard-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink():
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _locked_file(owner: str) -> int:
    """Return a file that stays locked until this process and its children have ended."""
    # Nobody may find it before it is locked.
    hidden = _folder() / f".{owner}"
    import fcntl  # there is none on Windows

    file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        hidden.rename(hidden.with_name(owner))
    except OSError:
        os.close(file)
        hidden.unlink()
        raise
    return file


def _has_died(path: Path) -> bool:
    """Tell whether no process keeps the file of a worker locked."""
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _has_exited(pid: int) -> bool:
    """Tell whether a child of this process has ended; the pool still finds that out itself."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except (AttributeError, OSError):
        return False  # there is no waitid, or the pool has just found out


@worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def _be_pool_process(**_: Any) -> None:
    claims.pool_process = os.getpid()


class Deaths:
    """The processes that were found dead: children of a worker's pool, and other workers.

    Arguments:
        pool: The worker's pool, as Celery's `TaskPool`; None: it has none.
    """

    def __init__(self, pool: Any = None) -> None:
        self._pool = pool
        self._children: set[int] = set()
        #: When the owners that have died were found dead (`time.monotonic`).
        self._workers: dict[str, float] = {}
        self._looks = 0

    def expire_claims(self, expire: Callable[[Callable[[str], bool]], int]) -> int:
        """End the claims of those that have died; return how many.

        Arguments:
            expire: :meth:`.model.Ledger.expire`, which is called only if somebody has died lately.
        """
        self.look()
        if not self._looks:
            return 0
        expired = expire(self._is_dead)
        self._looks -= 1
        return expired

    def look(self) -> None:
        """Look for processes that have died since the last look."""
        children = self._living()
        if children is not None:
            if self._children - children:
                self._looks = LOOKS
            self._children = children
        if self._found_workers():
            self._looks = LOOKS

    def _living(self) -> set[int] | None:
        """Return the ids of the pool's processes; None where that cannot be told.

        Celery takes a process off the list when it has ended, not before, and sometimes late.
        """
        processes = getattr(getattr(self._pool, "_pool", None), "_pool", None)
        if not isinstance(processes, list):
            return None
        pids: set[Any] = {getattr(process, "pid", None) for process in list(processes)}
        # One that is just being started has no id yet.
        if not pids or None in pids:
            return None
        return {pid for pid in pids if not _has_exited(pid)}

    def _found_workers(self) -> bool:
        """Look for workers that have died; tell whether there are new ones."""
        known = len(self._workers)
        # Why there is no folder was logged by `be_worker`.
        with suppress(OSError):
            for path in _folder().iterdir():
                self._look_at_worker(path)
        return len(self._workers) > known

    def _look_at_worker(self, path: Path) -> None:
        since = self._workers.get(path.name)
        if since is not None:
            if time.monotonic() - since > KEPT_SECONDS:
                path.unlink(missing_ok=True)
        elif not path.name.startswith(".") and path.name != claims.owner and _has_died(path):
            self._workers[path.name] = time.monotonic()

    def _is_dead(self, token: str) -> bool:
        owner, mark = claims.origin(token)
        if owner != claims.owner:
            return owner in self._workers
        living = self._living()
        if living is None or mark == claims.process_mark(0):
            return False
        # A child that was started meanwhile is among them: the claims were read before.
        return mark not in map(claims.process_mark, {os.getpid(), *living})
