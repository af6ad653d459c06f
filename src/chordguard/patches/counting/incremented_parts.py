"""One failed header task keeps the body from running (memcached, DynamoDB, Google Cloud Storage).

`BaseKeyValueStoreBackend.on_chord_part_return` increments a counter with each part. The last one
joins the header with `propagate=True`, within `result_chord_join_timeout`. A member that is
delivered again counts twice: the chord fails while another still runs, or its body, which may run
by then, is failed since "GroupResult no longer exists". Up to 5.6 DynamoDB raises in the end, since
its client has no `delete`. Here a chord ends when all of its members have results, and once.
https://github.com/celery/celery/issues/1881 https://github.com/celery/celery/issues/4412
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import COUNTING, Defect, Patch
from ...engine.versions import celery_5_5
from ...lifecycle import incrementing
from ...upstream import hooks

patch = Patch(
    "incremented_parts",
    Defect("A1", "one failing header task and the body never runs"),
    Defect("A9", "the error of a failed chord names one member only"),
    Defect("B4", "a member that runs twice is counted twice: the chord fails"),
    Defect("B6", "an error of the store while a part is counted: the chord fails or hangs"),
    Defect("C7", "a good chord fails because reading its results takes over 3 seconds"),
    backends=(COUNTING,),
)


@patch.wraps(
    "celery.backends.base",
    "BaseKeyValueStoreBackend._apply_chord_incr",
    takes={"header_result_args": 0, "body": 1},
)
def apply_chord(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, header_result_args: Any, body: Any
) -> Any:
    group_id = header_result_args[0]
    if incrementing.is_claim(group_id):
        # Where a counter has to be there before it is incremented, the backend has made it.
        return None
    started = wrapped(*args, **kwargs)
    if not hooks.counts_itself(backend):
        backend._apply_chord_incr((incrementing.claim_id(group_id), ()), body)
    return started


@patch.wraps(
    "celery.backends.base", "BaseKeyValueStoreBackend.on_chord_part_return", takes={"request": 0}
)
@patch.wraps(
    "celery.backends.gcs",
    "GCSBackend.on_chord_part_return",
    since=celery_5_5,
    takes={"request": 0},
)
def on_chord_part_return(
    wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any
) -> Any:
    is_part = backend.implements_incr and request.group and request.id and request.chord
    if not is_part or hooks.counts_itself(backend) or not incrementing.count(backend, request):
        return wrapped(*args, **kwargs)
    return None
