"""How a chord ends: its results are collected for the body, or it fails.

`collect` applies the chord's error policy to the results of the header; `fail` settles all
that waits for a chord that cannot end well. Nothing here knows a version of Celery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import states
from celery._state import get_current_task
from celery.exceptions import ChordError
from celery.utils.log import get_logger
from kombu import serialization
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.encoding import safe_repr

from . import hooks, signals
from .backends import StoredResult, is_database, is_redis
from .errors import OUTSIDE, ChordMemberLost
from .failures import LONGEST, cut, describe, listed, record_of, to_exception
from .ledger.model import Header, header_of, leaf_ids
from .policy import tolerates

if TYPE_CHECKING:
    from celery import Celery

    from .policy import Policy

__all__ = (
    "call_errbacks",
    "collect",
    "fail",
    "fail_chained",
    "fail_chord",
    "finish",
    "header_of",
    "is_awaited",
    "join",
    "leaf_ids",
    "left_to_chord",
    "left_to_outer",
    "return_part",
    "settle",
    "task_ids",
    "tell_end",
    "waiting_for",
    "with_errbacks_once",
)

logger = logging.getLogger("chordguard")


def collect(header: Header, results: Mapping[str, StoredResult], policy: Policy) -> list[Any]:
    """Return what the body gets: the members' results in header order, nested as the header.

    A failed member is handed over as the policy says. A member without a result has been
    lost: it counts as failed with :exc:`ChordMemberLost`.

    Raises:
        ChordError: More members failed than the policy allows; it names the first ones.
    """
    failures: list[dict[str, Any]] = []
    size = 0

    def gather(items: Header) -> list[Any]:
        nonlocal size
        gathered: list[Any] = []
        for item in items:
            if not isinstance(item, str):
                gathered.append(gather(item))
                continue
            result = results.get(item) or lost(item)
            if result.failed:
                record = record_of(result, size)
                failures.append(record)
                gathered.append(policy.hand_over(record, result.value))
            else:
                gathered.append(result.value)
            size += 1
        return gathered

    gathered = gather(header)
    if not policy.allows(len(failures), size):
        raise _caused_by(
            to_exception(failures[0]),
            f"{len(failures)} of {size} header tasks failed, "
            f"{_allowance(policy)}: {listed(map(describe, failures), len(failures))}",
        )
    return gathered


def join(
    backend: Any,
    header: Header,
    results: Mapping[str, StoredResult],
    policy: Policy,
    *,
    settled: str | None = None,
) -> list[Any]:
    """Return what the body gets, as `collect` does; the arguments are those of `finish`.

    Raises:
        ChordError: What the chord fails with. That of a strict chord begins as in Celery.
    """
    if policy.tolerate:
        return collect(header, results, policy)
    if hooks.unpacks_itself(backend):
        return _unpacked(backend, header, results, settled)
    _check_strictly(backend, header, results, settled)
    return collect(header, results, policy)


def _unpacked(
    backend: Any, header: Header, results: Mapping[str, StoredResult], settled: str | None
) -> list[Any]:
    """Return what the backend's own `_unpack_chord_result` makes of each member."""
    if settled is not None and not all(id_ in results for id_ in leaf_ids(header)):
        _check_strictly(backend, header, results, settled)

    def unpack(item: Any) -> Any:
        if not isinstance(item, str):
            return [unpack(member) for member in item]
        result = results.get(item) or lost(item)
        part = (1, result.task_id, result.state, result.value)
        # What it is to decode has been decoded.
        return backend._unpack_chord_result(part, lambda decoded: decoded)

    try:
        return [unpack(item) for item in header]
    except (ChordError, *OUTSIDE):
        raise
    except Exception as exc:
        text = cut(safe_repr(exc))  # type: ignore[no-untyped-call]
        raise _caused_by(exc, f"Join error: {text}") from exc


def finish(
    app: Celery,
    body: Any,
    header: Header,
    results: Mapping[str, StoredResult],
    policy: Policy,
    *,
    group_id: str,
    started: float | None = None,
    settled: str | None = None,
    is_tried_again: bool = False,
) -> bool:
    """End a chord: publish its body with the results, or fail it as the policy says.

    Arguments:
        app: The app whose worker ends the chord.
        body: The frozen signature of the body.
        header: The members' ids, nested as the header is.
        results: The members' stored results by id; a member that is not there is lost.
        policy: The chord's error policy.
        group_id: The chord.
        started: When it started (Unix time), if that is known.
        settled: For a chord that ends before its members are done: the sentence that says why,
            with which the error of a strict chord begins.
        is_tried_again: Whether the caller tries again when the broker is away.

    Returns:
        Whether the body was published.

    Raises:
        kombu.exceptions.OperationalError: The broker is away and it `is_tried_again`.
    """
    ids = set(leaf_ids(header))
    errors = sum(id_ not in results or results[id_].failed for id_ in ids)
    try:
        gathered = join(app.backend, header, results, policy, settled=settled)
        body = with_errbacks_once(app, body)
        try:
            _publish(app, body, gathered)
        except EncodeError:
            results, count = _without_unsendable(app, body, header, results)
            errors += count
            if not count:
                raise
            _publish(app, body, join(app.backend, header, results, policy, settled=settled))
    except OUTSIDE:
        raise
    except Exception as exc:
        if is_tried_again and isinstance(exc, OperationalError):
            raise
        error = exc
        if not isinstance(exc, ChordError):
            error = _caused_by(exc, f"Callback error: {cut(safe_repr(exc))}")  # type: ignore[no-untyped-call]
        # `celery.chord_unlock` logs what caused the error, of those that Celery raises, too.
        is_celerys = settled is None and not policy.tolerate
        raised = error.__cause__ if is_celerys and is_database(app.backend) else None
        fail_chord(app, group_id, body, error, errors=errors, started=started, raised=raised)
        return False
    if errors:
        logger.info(
            "Chord %s: %d of %d header tasks failed, which is tolerated", group_id, errors, len(ids)
        )
    tell_end(app, group_id, signals.TOLERATED if errors else signals.SUCCEEDED, errors, started)
    return True


def _publish(app: Celery, body: Any, gathered: Any) -> None:
    # From 5.7 on Celery publishes a body again after a broker error.
    publish = getattr(app.amqp, "_retry_publish", None)
    if publish is None:
        body.delay(gathered)
    else:
        publish(body.delay, gathered)


def _without_unsendable(
    app: Celery, body: Any, header: Header, results: Mapping[str, StoredResult]
) -> tuple[Mapping[str, StoredResult], int]:
    """Return the results, with those as failed that a message to the `body` cannot carry.

    The result store may take what the serializer of tasks does not. The second value is how many.
    """
    serializer = body.options.get("serializer") or app.conf.task_serializer
    unsendable: dict[str, StoredResult] = {}
    for task_id in set(leaf_ids(header)):
        result = results.get(task_id)
        if result is None or result.failed:
            continue
        try:
            serialization.dumps(result.value, serializer)  # type: ignore[no-untyped-call]
        except EncodeError as exc:
            error = EncodeError(f"the result of {task_id} cannot be sent as {serializer}: {exc}")
            unsendable[task_id] = StoredResult(task_id, states.FAILURE, error)
    return {**results, **unsendable}, len(unsendable)


def fail_chord(
    app: Celery,
    group_id: str,
    body: Any,
    exc: BaseException,
    *,
    errors: int = 0,
    started: float | None = None,
    raised: BaseException | None = None,
) -> None:
    """Fail a chord for good: log it as Celery does, settle what waits for it, send the signals.

    Arguments:
        app: The app whose worker ends the chord.
        group_id: The chord.
        body: The frozen signature of its body.
        exc: Why it failed.
        errors: How many of its members failed or were lost.
        started: When it started (Unix time), if that is known.
        raised: What the log tells in place of `exc`.
    """
    raised = raised or exc
    if not all(map(_is_readable, (raised, raised.__cause__))):
        # A log is no place for megabytes; the error of the chord tells how they begin.
        raised = ChordError(str(exc))
    # Alerts are made for this line: the logger, the level and the words are those of Celery.
    exc_info = (type(raised), raised, raised.__traceback__ or exc.__traceback__)
    _celery_logger(app.backend).error("Chord %r raised: %r", group_id, raised, exc_info=exc_info)
    if hooks.fails_itself(app.backend):
        app.backend.chord_error_from_stack(body, exc)
    else:
        fail(app.backend, body, exc)
    tell_end(app, group_id, signals.FAILED, errors, started)


def _is_readable(exc: BaseException | None) -> bool:
    """Tell whether an exception can be put into words, and into not too many."""
    try:
        return len(repr(exc)) <= 2 * LONGEST
    except Exception:  # noqa: BLE001 - anybody's __repr__
        return False


def _celery_logger(backend: Any) -> logging.Logger:
    """Return the logger with which Celery reports the failed chords of a `backend`."""
    name = "celery.backends.redis" if is_redis(backend) else "celery.app.builtins"
    found: logging.Logger = get_logger(name)
    return found


def tell_end(
    app: Celery, group_id: str, outcome: str, errors: int = 0, started: float | None = None
) -> None:
    """Send the signal `chord_ended`; for the arguments see there."""
    signals.chord_ended.send(
        sender=app,
        group_id=group_id,
        outcome=outcome,
        errors=errors,
        seconds=None if started is None else max(0.0, time.time() - started),
    )


def _check_strictly(
    backend: Any, header: Header, results: Mapping[str, StoredResult], settled: str | None
) -> None:
    """Raise what a strict chord fails with, unless all its members succeeded.

    As in Celery the error begins with the first failed member, and is caused by its error; then
    it names the others.
    """
    ids = list(leaf_ids(header))
    missing = [task_id for task_id in ids if task_id not in results]
    if settled is None:
        found = [results.get(task_id) or lost(task_id) for task_id in ids]
    else:
        found = [results[task_id] for task_id in ids if task_id in results]
    failed = [result for result in found if result.failed]
    if settled is not None and missing:
        message = (
            f"{settled}: no result of {len(missing)} of {len(ids)} header tasks: "
            f"{', '.join(missing)}"
        )
        if not failed:
            raise ChordError(message)
        raise _caused_by(_cause_of(backend, failed[0]), f"{message}; failed: {_named(failed)}")
    if failed:
        cause = _cause_of(backend, failed[0])
        text = cut(safe_repr(cause))  # type: ignore[no-untyped-call]
        message = f"Dependency {failed[0].task_id} raised {text}"
        if len(failed) > 1:
            message += f"; also failed: {_named(failed[1:])}"
        raise _caused_by(cause, message)


def _cause_of(backend: Any, result: StoredResult) -> BaseException:
    cause = result.value
    if not isinstance(cause, BaseException):
        # Of what is no exception's data Celery makes none, or raises an error of its own.
        with suppress(Exception):
            cause = backend.exception_to_python(cause)
    return cause if isinstance(cause, BaseException) else to_exception(record_of(result, None))


def _named(failed: Sequence[StoredResult]) -> str:
    """Return a line that names each failed member and its error, as far as they are readable."""
    return listed((describe(record_of(result, None)) for result in failed), len(failed))


def lost(task_id: str) -> StoredResult:
    """Return the result of a member of which nothing is known."""
    return StoredResult(
        task_id,
        states.FAILURE,
        ChordMemberLost("no result of this header task arrived before the chord's bound"),
    )


def fail(backend: Any, body: Any, exc: BaseException) -> None:
    """Settle everything that waits for the `body` of a failed chord, and call its errbacks.

    Each result that the body would have given is stored as failed, and each one that is
    itself a member of a chord returns its part there: the innermost body of a body that is
    a chord, every member of a group, every step of a chain. The tasks of a body that is a group
    fail with the cause of `exc`, if it has one.

    Arguments:
        backend: The result backend.
        body: The frozen signature of the body, or the same as data.
        exc: Why the chord failed.
    """
    leaves = list(waiting_for(body))
    signals.chord_failed.send(sender=backend.app, body=body, exception=exc)
    if body.get("subtask_type") == "group" and exc.__cause__ is not None:
        # As from Celery 5.6 on: the tasks of a group fail with the error of the header task.
        exc = exc.__cause__
    call_errbacks(backend, body, exc)
    settle(backend, leaves, exc)


def is_awaited(request: Any) -> bool:
    """Tell whether a chord waits for a task, or for what is chained after it."""
    return bool(request.chord or _chord_of(_chained_after(request)))


def fail_chained(backend: Any, request: Any, exc: BaseException) -> None:
    """Fail what is chained after a task that does not go on, and return its parts.

    Arguments:
        backend: The result backend.
        request: The request of the task.
        exc: Why it does not go on.
    """
    settle(backend, list(_chained_after(request)), exc)


def task_ids(leaves: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ids that the frozen signatures have, in their order."""
    ids = ((leaf.get("options") or {}).get("task_id") for leaf in leaves)
    return [task_id for task_id in ids if task_id]


def settle(backend: Any, leaves: Sequence[Mapping[str, Any]], exc: BaseException) -> None:
    """Store the results of simple signatures that never run as failed; return their parts."""
    running = get_current_task()
    for leaf in leaves:
        task_id = leaf.get("options", {}).get("task_id")
        if task_id:
            request = _request_of(leaf)
            if running is not None:
                # As by Celery: the errbacks that were called are found from what failed.
                request.children.extend(running.request.children)
            backend.store_result(task_id, exc, states.FAILURE, request=request)
    for leaf in leaves:
        return_part(backend, leaf, exc)


def return_part(backend: Any, signature: Mapping[str, Any], exc: BaseException) -> None:
    """Return a failed part to the chord of which `signature` is a member, if it is one."""
    request = _request_of(signature)
    if request.chord and request.id:
        backend.on_chord_part_return(request, states.FAILURE, exc)


def waiting_for(signature: Any, *, follow_chain: bool = True) -> Iterator[Mapping[str, Any]]:
    """Yield the simple signatures whose results `signature` would have given.

    For a group each of its tasks, for a chain each of its steps, for a chord its body; all
    the way down, and what is chained after it. `signature` is frozen, and may be data.
    """
    kind = signature.get("subtask_type")
    kwargs = signature.get("kwargs") or {}
    tasks = list(kwargs.get("tasks") or ())
    if kind == "group":
        for task in tasks:
            yield from waiting_for(_in_place_of(signature, task))
    elif kind == "chain":
        for task in tasks[:-1]:
            yield from waiting_for(task)
        for task in tasks[-1:]:
            yield from waiting_for(_in_place_of(signature, task))
    elif kind == "chord":
        if kwargs.get("body"):
            yield from waiting_for(_in_place_of(signature, kwargs["body"]))
    else:
        yield signature
    if follow_chain:
        yield from _steps((signature.get("options") or {}).get("chain"))


def _in_place_of(whole: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `part` that gives the result of `whole`, as a member of the same chord.

    What takes a task's place is frozen before it is told of which chord that is a member; it tells
    its parts only when it runs.
    """
    options = whole.get("options") or {}
    if not options.get("chord") or (part.get("options") or {}).get("chord"):
        return part
    told = {key: options.get(key) for key in ("chord", "group_id", "group_index")}
    return {**part, "options": {**(part.get("options") or {}), **told}}


def _chained_after(request: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the simple signatures that would have run after the task of `request`."""
    return _steps(request.chain)


def _steps(chain: Sequence[Mapping[str, Any]] | None) -> Iterator[Mapping[str, Any]]:
    # The next step of a chain comes last.
    for step in reversed(chain or ()):
        yield from waiting_for(step)


def _request_of(signature: Mapping[str, Any]) -> Any:
    """Return the request that a worker would have had for the frozen `signature`."""
    from celery.app.task import Context

    options = dict(signature.get("options") or {})
    request = Context(options)
    request.update(
        id=options.get("task_id"),
        task=signature.get("task"),
        args=signature.get("args"),
        kwargs=signature.get("kwargs"),
        group=options.get("group_id"),
        chord=options.get("chord"),
        group_index=options.get("group_index"),
        errbacks=_as_list(options.get("link_error")),
        delivery_info={},
    )
    return request


def call_errbacks(
    backend: Any,
    body: Mapping[str, Any],
    exc: BaseException,
    *,
    task_id: str | None = None,
    is_eager: bool = False,
) -> None:
    """Call each errback once for each result of the `body` that carries it, as Celery 5.7 does.

    That is once for a task, and once for each task of a group. What the body of a strict chord
    around this one calls, too, is left to that one (`Backend._handle_group_chord_error`).

    Arguments:
        backend: The result backend.
        body: The frozen signature of the body, or the same as data.
        exc: Why the chord failed.
        task_id: The id of the body's result, where the body has none.
        is_eager: Whether errbacks are called in this process.
    """
    left = left_to_outer(backend.app, body)
    for signature, errbacks in _carriers(body):
        request = _request_of(signature)
        ids = task_ids(waiting_for(signature, follow_chain=False))
        request.id = request.id or next(reversed(ids), task_id)
        request.delivery_info = {"is_eager": is_eager}
        request.errbacks = _each_once(errbacks, left)
        if request.errbacks:
            try:
                backend._call_task_errbacks(request, exc, None)
            except OUTSIDE:
                raise
            except Exception:
                logger.exception("An errback of the chord's body %s raised", request.id)


def _carriers(
    signature: Any, inherited: Sequence[Any] = ()
) -> Iterator[tuple[Mapping[str, Any], list[Any]]]:
    """Yield the parts of `signature` that give its results, each with the errbacks to call.

    A group hands its errbacks to its tasks, a chord to its body. A chain gives one result, but its
    first task, which would have run by now, calls errbacks of its own, too.
    """
    own = _as_list((signature.get("options") or {}).get("link_error"))
    errbacks = [*inherited, *own]
    kind = signature.get("subtask_type")
    kwargs = signature.get("kwargs") or {}
    tasks = list(kwargs.get("tasks") or ())
    if kind == "group" and tasks:
        for task in tasks:
            yield from _carriers(task, errbacks)
    elif kind == "chord" and kwargs.get("body"):
        yield from _carriers(kwargs["body"], errbacks)
    else:
        yield signature, errbacks
        if kind == "chain" and tasks:
            for first, others in _carriers(tasks[0]):
                yield first, [errback for errback in others if errback not in errbacks]


def left_to_outer(app: Celery, body: Mapping[str, Any]) -> list[Any]:
    """Return the errbacks that the chord around this one calls when it fails in its turn.

    Celery links an errback of the outer chord to the bodies of the chords in its header, too.
    """
    outer = _chord_of(waiting_for(body))
    return [] if outer is None or tolerates(app, outer) else _errbacks_of(outer)


def with_errbacks_once(app: Celery, body: Any) -> Any:
    """Return `body` with each errback of its own once, without what is left to the outer chord."""
    errbacks = _as_list(body.options.get("link_error"))
    kept = _each_once(errbacks, left_to_outer(app, body)) if errbacks else errbacks
    if len(kept) == len(errbacks):
        return body
    body = body.clone()
    body.options["link_error"] = kept
    return body


def left_to_chord(request: Any) -> list[Any]:
    """Return the errbacks of a header task that are not its own: its chord calls them.

    With ``task_allow_error_cb_on_chord_header`` Celery links copies of a chord's errback to the
    tasks of its header.
    """
    copies = [errback for errback in _as_list(request.errbacks) if _is_copy(errback)]
    if not copies:
        return []
    chord = request.chord or _chord_of(_chained_after(request))
    called = [] if chord is None else _errbacks_of(chord)
    return [copy for copy in copies if _as_linked(copy) in called]


def _chord_of(leaves: Iterable[Mapping[str, Any]]) -> Any:
    """Return the body of the chord of which the frozen signatures are members, if there is one."""
    chords = ((leaf.get("options") or {}).get("chord") for leaf in leaves)
    return next(filter(None, chords), None)


def _errbacks_of(body: Mapping[str, Any]) -> list[Any]:
    """Return the errbacks that are called when the chord with this `body` fails."""
    return [_as_linked(errback) for _, errbacks in _carriers(body) for errback in errbacks]


def _each_once(errbacks: Iterable[Any], called: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for errback in map(_as_linked, errbacks):
        if errback not in called and errback not in kept:
            kept.append(errback)
    return kept


def _is_copy(errback: Mapping[str, Any]) -> bool:
    # `clone(immutable=True)`, of which Celery makes an option, not an immutable signature.
    return bool((errback.get("options") or {}).get("immutable"))


def _as_linked(errback: Any) -> Any:
    """Return the errback of which Celery linked the copy `errback`."""
    if not _is_copy(errback):
        return errback
    options = {key: value for key, value in errback["options"].items() if key != "immutable"}
    linked = errback.clone() if hasattr(errback, "clone") else dict(errback)
    linked["options"] = options
    return linked


def _caused_by(cause: BaseException, message: str) -> ChordError:
    error = ChordError(message)
    error.__cause__ = cause
    return error


def _as_list(value: Any) -> list[Any]:
    if not value:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _allowance(policy: Policy) -> str:
    if not policy.tolerate:
        return "none is tolerated"
    if isinstance(policy.max_errors, float):
        return f"at most a share of {policy.max_errors:g} tolerated"
    return f"at most {policy.max_errors} tolerated"
