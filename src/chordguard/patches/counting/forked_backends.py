"""A pool process that takes the place of a dead one reads what others asked (memcached, ...).

The main process of a worker stores results, too: of a child that was killed, of a task that is not
registered. A child that it forks after that inherits its result backend with an open connection,
and both read each other's answers. Results get lost, and chords fail or hang. Here a child makes a
result backend of its own. Redis and SQL see to it themselves. Unreported upstream.
"""

from __future__ import annotations

from typing import Any

from ...engine.patch import COUNTING, POLLED, Defect, Patch
from ...upstream import backends

patch = Patch(
    "forked_backends",
    Defect(
        "B20", "a pool process that replaces a dead one shares a connection, and results get lost"
    ),
    backends=(POLLED, COUNTING),
)


@patch.wraps("celery.app.base", "Celery._after_fork", app_of=lambda app, _: app)
def after_fork(wrapped: Any, app: Any, args: Any, kwargs: Any) -> Any:
    local = vars(app._local)
    if _is_inherited(local.get("backend")):
        del local["backend"]
    if _is_inherited(getattr(app, "_backend_cache", None)):
        app._backend_cache = None
    return wrapped(*args, **kwargs)


def _is_inherited(backend: Any) -> bool:
    can = backends.capabilities(backend)
    return can.takes_chords and not can.keeps_ledger
