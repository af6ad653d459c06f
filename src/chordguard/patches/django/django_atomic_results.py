"""Django: a RETRY that is stored late overwrites the SUCCESS of a member, whose chord then waits.

django-celery-results reads the row of a result, then writes all of it. `Task.retry` publishes
before it stores RETRY, so the next run may be done first. Here the result of a member is stored by
one statement, which never replaces a ready state by one that is not, and its part is counted in the
same transaction.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

from ...engine.patch import Defect, Patch
from ...lifecycle import counting

patch = Patch(
    "django_atomic_results",
    Defect("J8", "Django: a RETRY stored late overwrites SUCCESS, the chord never ends"),
    driver="django_celery_results",
)

#: The backend and the request whose result is being stored: `store` sets and resets it.
_storing: ContextVar[tuple[Any, Any] | None] = ContextVar("chordguard_storing", default=None)


def _app_of_storing(*_: Any) -> Any:
    storing = _storing.get()
    return None if storing is None else storing[0].app


@patch.wraps(
    "django_celery_results.backends.database",
    "DatabaseBackend._store_result",
    takes={"request": 4},
)
def store(wrapped: Any, backend: Any, args: Any, kwargs: Any, *, request: Any) -> Any:
    if request is None or not request.chord:
        return wrapped(*args, **kwargs)
    token = _storing.set((backend, request))
    try:
        return wrapped(*args, **kwargs)
    finally:
        _storing.reset(token)


@patch.wraps(
    "django_celery_results.managers", "TaskResultManager.store_result", app_of=_app_of_storing
)
def write(wrapped: Any, manager: Any, args: Any, kwargs: Any) -> Any:
    from ...upstream import django

    storing = _storing.get()
    row = _row_of(manager, wrapped, args, kwargs)
    if storing is None or row is None:
        return wrapped(*args, **kwargs)
    backend, request = storing
    alias = django.alias_of(manager.model)
    part = counting.part_to_store(request)
    put = partial(django.put_result, manager.using(alias), row)

    def write_row() -> None:
        if part is None or not part.store(put):
            put()

    django.with_retries(backend, alias, write_row)
    return None


def _row_of(manager: Any, function: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Return the fields of a result that is to be stored; None where we do not know how to."""
    given = _signature(function).bind(*args, **kwargs).arguments
    row = {**given, **given.pop("kwargs", {})}
    is_elsewhere = row.pop("using", None) is not None
    row.pop("exception_retry_count", None)
    names = {field.name for field in manager.model._meta.concrete_fields}
    return None if is_elsewhere or not row.keys() <= names else row


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)
