"""What the body of a chord gets, or the error that the chord fails with.

Nothing here knows a version of Celery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import ChordError
from kombu.utils.encoding import safe_repr

from ..errors import OUTSIDE, ChordMemberLost
from ..failures import cut, describe, listed, record_of, to_exception
from ..ledger.packing import Header, leaf_ids
from ..upstream import hooks
from ..upstream.results import Results, StoredResult

if TYPE_CHECKING:
    from ..policy import Policy

__all__ = (
    "caused_by",
    "collect",
    "join",
)


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
        raise caused_by(
            to_exception(failures[0]),
            f"{len(failures)} of {size} header tasks failed, "
            f"{_allowance(policy)}: {listed(map(describe, failures), len(failures))}",
        )
    return gathered


def join(
    backend: Any,
    header: Header,
    results: Results,
    policy: Policy,
    *,
    settled: str | None = None,
) -> list[Any]:
    """Return what the body gets, as `collect` does; the arguments are those of `finish`.

    Raises:
        ChordError: What the chord fails with. That of a strict chord begins as in Celery.
    """
    unpacks_itself = not policy.tolerate and hooks.unpacks_itself(backend)
    if not unpacks_itself and (values := results.values_of(header)) is not None:
        return values
    if policy.tolerate:
        return collect(header, results, policy)
    if unpacks_itself:
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
        raise caused_by(exc, f"Join error: {text}") from exc


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
        raise caused_by(_cause_of(backend, failed[0]), f"{message}; failed: {_named(failed)}")
    if failed:
        cause = _cause_of(backend, failed[0])
        text = cut(safe_repr(cause))  # type: ignore[no-untyped-call]
        message = f"Dependency {failed[0].task_id} raised {text}"
        if len(failed) > 1:
            message += f"; also failed: {_named(failed[1:])}"
        raise caused_by(cause, message)


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


def caused_by(cause: BaseException, message: str) -> ChordError:
    """Return the error of a chord that fails because of `cause`."""
    error = ChordError(message)
    error.__cause__ = cause
    return error


def _allowance(policy: Policy) -> str:
    if not policy.tolerate:
        return "none is tolerated"
    if isinstance(policy.max_errors, float):
        return f"at most a share of {policy.max_errors:g} tolerated"
    return f"at most {policy.max_errors} tolerated"
