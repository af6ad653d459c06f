"""In eager mode a failed header task raises out of `apply_async` and no errback runs.

`_chord.apply` joins the header and lets its error through, whatever
`task_eager_propagates` says. Here an eager chord ends as one on a worker does: a tolerant
one runs its body, a strict one returns a failed result and calls each errback once; only
with `task_eager_propagates` the error of a strict chord is raised.
https://github.com/celery/celery/issues/2132
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import states
from kombu.utils.uuid import uuid

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7, celery_version
from ...ledger.packing import header_of
from ...lifecycle.errbacks import call_errbacks
from ...lifecycle.joining import collect
from ...policy import Policy, tolerates
from ...upstream.awaited import leaves_of
from ...upstream.results import StoredResult
from ...upstream.signatures import giving, kind_of

patch = Patch(
    "eager_chords",
    Defect("A13", "eager mode: a failed header task raises out of apply_async, no errback runs"),
)


@patch.wraps("celery.canvas", "_chord.apply")
def apply(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    return _apply(wrapped, chord, *args, **kwargs)


def _apply(
    wrapped: Any,
    chord: Any,
    args: Any = None,
    kwargs: Any = None,
    propagate: bool = True,
    body: Any = None,
    **options: Any,
) -> Any:
    from celery.exceptions import ChordError
    from celery.result import EagerResult

    app = chord.app
    callback = chord.body if body is None else body
    raises = app.conf.task_eager_propagates and not tolerates(app, callback)
    if callback is None or raises or not propagate:
        return wrapped(args, kwargs, propagate=propagate, body=body, **options)
    results = list(_run_header(chord, args or (), kwargs or {}))
    stored = {leaf.id: _as_stored(app, leaf) for result in results for leaf in leaves_of(result)}
    try:
        gathered = collect(header_of(results), stored, Policy.of(app, callback))
    except ChordError as exc:
        task_id = callback.options.get("task_id") or uuid()
        call_errbacks(app.backend, callback, exc, task_id=task_id, is_eager=True)
        return EagerResult(task_id, exc, states.FAILURE)
    return callback.apply(args=(gathered,))


def _run_header(chord: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Run the members of the header as `group.apply` does, each whatever the others did."""
    from celery.canvas import group

    header = chord.tasks
    header = header.clone() if isinstance(header, group) else group(header, app=chord.app)
    options, group_id, root_id = header._freeze_gid({})
    unfrozen = {} if celery_version() < celery_5_7 else {"freeze": False}
    for task, _, _ in header._prepared(header.tasks, [], group_id, root_id, chord.app, **unfrozen):
        try:
            yield task.apply(args=args, kwargs=kwargs, **{**options, "throw": False})
        except Exception as exc:  # noqa: BLE001 - a chain raises the error of a step before its last
            yield _failed_as(task, chord.app, exc)


def _failed_as(task: Any, app: Any, exc: Exception) -> Any:
    """Return the result of a failed `task` in the shape that a worker would give it."""
    from celery.canvas import maybe_signature
    from celery.result import EagerResult

    task = maybe_signature(task, app=app)
    parts = giving(task)
    if kind_of(task) == "group":
        return app.GroupResult(uuid(), [_failed_as(part, app, exc) for part in parts or ()])
    if parts:
        return _failed_as(parts[0], app, exc)
    return EagerResult(uuid(), exc, states.FAILURE)


def _as_stored(app: Any, result: Any) -> StoredResult:
    value = result.result
    if result.state in states.PROPAGATE_STATES and isinstance(value, BaseException):
        # As a worker would have stored it, so that the body gets the same as from one.
        value = app.backend.prepare_exception(value)
    return StoredResult(result.id, result.state, value)
