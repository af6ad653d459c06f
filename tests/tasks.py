"""The tasks of the tests.

A task that takes `record` appends a line to that file each time it runs, so that a test can count
calls made in any process. `register` puts all of them on an app and `named` returns them by name.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import chord, current_task, group
from celery.exceptions import Ignore, Reject, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

PREFIX = "tests."
#: Seconds between two looks at a file.
POLL_INTERVAL = 0.02
#: Seconds after which a straggler whose file never comes gives up.
STRAGGLER_DEADLINE = 60.0
#: Seconds that a slow step of a random canvas takes.
SLOW = 0.05

_declared: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}


class CustomError(Exception):
    """An exception that the producer can import."""


class TwoArgumentError(Exception):
    """An exception that cannot be rebuilt from its `args`."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left}-{right}")


class RaisingStrError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnpicklableError(Exception):
    """An exception that holds what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


FAILURES: dict[str, Callable[[], BaseException]] = {
    "value_error": lambda: ValueError("boom"),
    "no_message": ValueError,
    "key_error": lambda: KeyError("missing"),
    "custom": lambda: CustomError("boom"),
    "two_arguments": lambda: TwoArgumentError("1", "2"),
    "raising_str": RaisingStrError,
    "unpicklable": lambda: UnpicklableError("boom"),
    "non_ascii": lambda: ValueError("žluťoučký \U0001f40e"),
    "long_message": lambda: ValueError("x" * 100_000),
    "system_exit": lambda: SystemExit(3),
}


def task(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        _declared[function.__name__] = (function, options)
        return function

    return declare


def register(app: Celery) -> None:
    """Put every task of this module on `app`."""
    for name, (function, options) in _declared.items():
        # Not shared: an app that did not ask for them does not get them.
        app.task(name=PREFIX + name, shared=False, **options)(function)


def named(app: Celery) -> SimpleNamespace:
    """Return the tasks of `app`, ``named(app).add`` and so on."""
    return SimpleNamespace(**{name: app.tasks[PREFIX + name] for name in _declared})


def append(record: str | None, line: str) -> None:
    """Append `line` to the file `record` in one write, which no other process can interrupt."""
    if record is None:
        return
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


# Values


@task()
def add(x, y):
    return x + y


@task()
def echo(x, record=None):
    append(record, f"echo {x}")
    return x


@task()
def tsum(numbers):
    return sum(numbers)


@task()
def collect(results, record=None):
    """Return the results of a header: the usual body of the tests."""
    append(record, f"body {results!r}")
    return results


@task(bind=True)
def with_eta(self, results):
    """Return the results of a header, and when this body was to start."""
    return [results, self.request.eta]


@task()
def peak(results):
    """Return the most memory that this process has used (KiB), and the length of the results."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(str(results))


@task()
def fail_at_length(size):
    """Fail with a message of so many characters."""
    raise ValueError("x" * size)


@task(acks_late=True, reject_on_worker_lost=True)
def sure_collect(results):
    """Return the results of a header, even if the worker that runs this is killed."""
    return results


@task()
def stamp(results, record):
    """Note when this body started; return how many results it got."""
    append(record, f"{time.time():.6f}")
    return len(results)


@task()
def collect_types(results):
    """Return the type of each result, or that of the exception that a text begins with."""
    names = []
    for result in results:
        head = str(result).partition(":")[0]
        named = isinstance(result, str) and head.endswith(("Error", "Exceeded"))
        names.append(head if named else type(result).__name__)
    return names


@task()
def slow(x, seconds):
    time.sleep(seconds)
    return x


@task()
def wait_for_file(path, x=None, deadline=STRAGGLER_DEADLINE):
    """Return `x` as soon as the file exists: a straggler that the test lets go."""
    end = time.monotonic() + deadline
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not come in {deadline} s")
        time.sleep(POLL_INTERVAL)
    return x


@task(ignore_result=True)
def ignored_result(x):
    return x


@task()
def unsendable():
    """Return what pickle takes and JSON does not."""
    return object()


@task(bind=True)
def process_id(self):
    return os.getpid()


# Failures


@task()
def fail(message="boom"):
    raise ValueError(message)


@task()
def fail_after(previous, message="boom"):
    """Fail as a later step of a chain or as a body."""
    raise ValueError(message)


@task()
def fail_with(kind):
    """Raise the exception of that name in `FAILURES`."""
    exception = FAILURES[kind]()
    raise exception


@task()
def ignore():
    raise Ignore


@task(bind=True)
def store_then_ignore(self, state, result):
    """Store a state of its own choice and tell Celery to leave it alone."""
    self.update_state(state=state, meta=result)
    raise Ignore


@task(bind=True)
def send_again(self, x):
    """Return `x` in a second run under the same id, which the first sends before it is ignored."""
    if self.request.retries:
        return x
    self.signature_from_request(self.request, retries=1).apply_async()
    raise Ignore


@task(bind=True)
def twice(self, x):
    """Return `x` in two runs under the same id, as if the message were delivered again."""
    if not self.request.retries:
        self.signature_from_request(self.request, retries=1).apply_async()
    return x


@task(acks_late=True)
def reject(requeue=False):
    raise Reject("rejected", requeue=requeue)


@task(bind=True)
def retry_then(self, x, times=1):
    """Return `x` after so many retries."""
    if self.request.retries < times:
        raise self.retry(countdown=0, max_retries=times)
    return x


@task(bind=True)
def retry_in_vain(self):
    """Give up after one retry."""
    raise self.retry(exc=ValueError("gave up"), countdown=0, max_retries=1)


@task(soft_time_limit=1)
def exceed_soft_limit(seconds=20):
    time.sleep(seconds)


@task(time_limit=1)
def exceed_hard_limit(seconds=20):
    time.sleep(seconds)


@task()
def kill_self(signal_number=signal.SIGKILL):
    """End the pool process in which the task runs."""
    os.kill(os.getpid(), signal_number)
    time.sleep(STRAGGLER_DEADLINE)


@task(acks_late=True, reject_on_worker_lost=True)
def kill_self_once(x, marker, signal_number=signal.SIGKILL):
    """End the pool process the first time, return `x` when the message is delivered again."""
    if Path(marker).exists():
        return x
    Path(marker).touch()
    os.kill(os.getpid(), signal_number)
    time.sleep(STRAGGLER_DEADLINE)
    raise AssertionError("a signal that does not kill")


# Tasks that replace themselves


def signature(app: Celery, name: str, *args: Any) -> Any:
    return app.signature(PREFIX + name, args=args)


@task(bind=True)
def replace_with(self, x):
    return self.replace(signature(self.app, "echo", x))


@task(bind=True)
def replace_with_fail(self, message="boom"):
    return self.replace(signature(self.app, "fail", message))


@task(bind=True)
def replace_with_group(self, xs):
    return self.replace(group([signature(self.app, "echo", x) for x in xs], app=self.app))


@task(bind=True)
def replace_with_chord(self, xs):
    header = [signature(self.app, "echo", x) for x in xs]
    return self.replace(chord(header, signature(self.app, "collect"), app=self.app))


# Errbacks. Celery calls one with the id of the failed task if it takes one argument, and with
# (request, exception, traceback) if it takes more; keyword-only arguments do not count.


@task(bind=True, ignore_result=True)
def replace_ignored_with_chord(self, xs):
    """Become a chord whose result somebody wants, although that of this task is ignored."""
    t = named(self.app)
    raise self.replace(chord([t.echo.s(x) for x in xs], t.collect.s()))


@task(bind=True, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
def fail_once(self, x):
    """Fail the first time; Celery tries again by itself."""
    if not self.request.retries:
        raise ValueError("once")
    return x


@task()
def errback_old(task_id, *, record=None):
    append(record, f"errback_old {task_id}")


@task()
def errback_new(request, exc, traceback, *, record=None):
    append(record, f"errback_new {request.id} {type(exc).__name__}: {exc}")


# Tasks that other moments than their end matter for


@task(bind=True)
def extend_chord(self, x, record=None):
    """Add a member that returns `x` to the chord of which this task is a member."""
    self.add_to_chord(signature(self.app, "echo", x))
    append(record, f"extended by {x}")
    return "extended"


@task(bind=True)
def retry_late(self, x):
    """Return `x` in a second run, whose SUCCESS is there before the first stores RETRY."""
    if self.request.retries:
        return x
    try:
        self.retry(countdown=0)
    except Retry:
        end = time.monotonic() + STRAGGLER_DEADLINE
        while self.AsyncResult(self.request.id).state != "SUCCESS" and time.monotonic() < end:
            time.sleep(POLL_INTERVAL)
        raise


# The tasks of random canvases, see `tests.canvases`


def do(given, name, does):
    """Do what a step of that name does."""
    if does == "fails":
        raise ValueError(name)
    if does == "raises_ignore":
        raise Ignore
    if does == "sleeps":
        time.sleep(SLOW)
    return [name, *given]


@task()
def step(*given, name, does):
    """Return the name and what was given, unless it `does` something else."""
    return do(given, name, does)


@task(ignore_result=True)
def forgotten_step(*given, name, does):
    return do(given, name, does)


@task(bind=True)
def replaced_step(self, *given, node):
    """Replace itself by a canvas that is given as data."""
    from tests.canvases.model import build

    return self.replace(build(node, named(self.app)))


class Interrupting:
    """A value that goes over its soft time limit when it is stored."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __json__(self) -> Any:
        # As the timer of the prefork pool does.
        os.kill(os.getpid(), signal.SIGUSR1)
        return self.value


@task()
def over_its_limit_when_stored(x):
    return Interrupting(x)


@task(bind=True)
def over_its_limit_after(self, x, seconds, record=None):
    """Return `x`; the soft time limit strikes so many seconds later, wherever this is then."""
    mine = self.request.id

    def strike(*_: Any) -> None:
        if current_task and current_task.request.id == mine:
            append(record, f"{time.time():.6f}")
            os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    return x
