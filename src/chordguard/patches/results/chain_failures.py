"""A step of a chain fails, and what the rest of the chain was waited for is never failed.

`Backend.mark_as_failure` fails the remaining steps one by one, but knows only simple ones: a
group's members stay PENDING and the chord that waits for them hangs (all versions), and up to
5.6 so does the body of a chord. Here such steps are taken apart into the simple ones that
somebody waits for. https://github.com/celery/celery/issues/9674
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...engine.patch import Defect, Patch
from ...engine.versions import celery_5_7, celery_version
from ...upstream.signatures import body_of, kind_of, waiting_for

patch = Patch(
    "chain_failures",
    Defect(
        "A6",
        "a chain in the header fails before a step that is a chord: the chord hangs",
        until=celery_5_7,
    ),
    Defect(
        "A14", "a chain in the header fails before a last step that is a group: the chord hangs"
    ),
)


@patch.wraps(
    "celery.backends.base", "Backend.mark_as_failure", until=celery_5_7, takes={"request": 3}
)
def mark_as_failure(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any) -> Any:
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
    kind = kind_of(step)
    if kind != "chord":
        return kind is not None
    body = body_of(step)
    return body is not None and (celery_version() < celery_5_7 or _is_complex(body))


def _taken_apart(chain: Any) -> Iterator[Any]:
    for step in chain:
        if _is_complex(step):
            yield from waiting_for(step)
        else:
            yield step
