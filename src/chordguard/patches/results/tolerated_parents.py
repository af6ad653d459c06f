"""`result.get()` on a chord raises a header task's error although the body succeeded.

`AsyncResult.get` follows the parents of a result and raises the error of any. The parents of
a chord's result include its header. Here the header of a tolerant chord is left out. What
users call themselves, such as `result.parent.get()`, stays as it is. Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from ... import settings
from ...engine.patch import DJANGO, REDIS, SQL, Defect, Patch
from ...policy import tolerates
from ...upstream import backends

patch = Patch(
    "tolerated_parents",
    Defect("A1c", "result.get() raises the error of a header task that was tolerated"),
    backends=(REDIS, SQL, DJANGO),
)

#: Set on the result of a chord's header where the chord is made: whether it is tolerant.
#: Elsewhere, as in a process that restored the result from data, the configuration decides.
_TOLERANT = "_chordguard_tolerant"


@patch.wraps("celery.canvas", "_chord.freeze")
def freeze(wrapped: Any, chord: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    if chord.body is not None:
        header_id = chord.tasks.id
        node = result
        while node is not None and node.id != header_id:
            node = node.parent
        _mark(node, chord.app, chord.body)
    return result


@patch.wraps("celery.canvas", "_chord.run", takes={"body": 1})
def run(wrapped: Any, chord: Any, args: Any, kwargs: Any, *, body: Any) -> Any:
    result = wrapped(*args, **kwargs)
    _mark(result.parent, chord.app, body)
    return result


@patch.wraps("celery.result", "AsyncResult._parents")
def parents(wrapped: Any, result: Any, args: Any, kwargs: Any) -> Any:
    nodes = wrapped(*args, **kwargs)
    if not backends.capabilities(result.backend).keeps_ledger:
        return nodes
    return [node for node in nodes if not _is_tolerated(node, result.app)]


def _mark(header: Any, app: Any, body: Any) -> None:
    if header is not None:
        setattr(header, _TOLERANT, tolerates(app, body))


def _is_tolerated(node: Any, app: Any) -> bool:
    if getattr(node, "results", None) is None:  # not a group: a step of a chain
        return False
    marked = getattr(node, _TOLERANT, None)
    return not settings.get(app, "chord_propagate_errors") if marked is None else bool(marked)
