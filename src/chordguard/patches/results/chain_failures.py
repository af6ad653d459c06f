"""A step of a chain fails, and what the rest of the chain was waited for is never failed.

`Backend.mark_as_failure` fails the remaining steps one by one, but knows only simple ones: a
group's members stay PENDING and the chord that waits for them hangs (all versions), and up to
5.6 so does the body of a chord. Here such steps are taken apart into the simple ones that
somebody waits for. https://github.com/celery/celery/issues/9674
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ... import completion
from ..._patch import Patch, celery_5_7, celery_version

patch = Patch(
    name="chain_failures",
    defects={
        "A6": "a chain in the header fails before a step that is a chord: the chord hangs",
        "A14": "a chain in the header fails before a last step that is a group: the chord hangs",
    },
    mended={"A6": celery_5_7},
)


@patch.wraps("celery.backends.base", "Backend.mark_as_failure", until=celery_5_7)
def mark_as_failure(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    request: Any = kwargs.get("request") or (args[3] if len(args) > 3 else None)
    chain = getattr(request, "chain", None)
    if not _has_complex(chain):
        return wrapped(*args, **kwargs)
    request.chain = list(_taken_apart(chain))
    try:
        return wrapped(*args, **kwargs)
    finally:
        request.chain = chain


@patch.wraps("celery.backends.base", "Backend._fail_chain", since=celery_5_7)
def fail_chain(wrapped: Any, backend: Any, args: Any, kwargs: Any) -> Any:
    chain = args[0] if args else kwargs.pop("chain", None)
    if _has_complex(chain):
        chain = list(_taken_apart(chain))
    return wrapped(chain, *args[1:], **kwargs)


def _has_complex(chain: Any) -> bool:
    return isinstance(chain, (list, tuple)) and any(_is_complex(step) for step in chain)


def _is_complex(step: Any) -> bool:
    """Tell whether Celery itself would leave unfailed what waits for `step`."""
    kind = step.get("subtask_type")
    if kind != "chord":
        return kind in ("group", "chain")
    body = (step.get("kwargs") or {}).get("body")
    return body is not None and (celery_version() < celery_5_7 or _is_complex(body))


def _taken_apart(chain: Any) -> Iterator[Any]:
    for step in chain:
        if _is_complex(step):
            yield from completion.waiting_for(step)
        else:
            yield step
