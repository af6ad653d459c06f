"""Put the wrappers of all patches on Celery, once for the process, and take them off again."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import wrapt

from .patch import (
    ACTIVE,
    Target,
    TaskTarget,
    Wrapper,
    Wrapping,
    app_of_instance,
    is_patched,
    patched_apps,
)

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "activate",
    "deactivate",
)

logger = logging.getLogger("chordguard")


_lock = threading.RLock()


def activate(app: Celery, patches: Iterable[Wrapping]) -> None:
    """Put the patches on, once for the process, and let them act for `app`."""
    with _lock:
        for patch in patches:
            for target in patch.targets_here():
                _put_on_when_imported(patch, target)
        setattr(app, ACTIVE, True)


def deactivate(app: Celery, patches: Sequence[Wrapping]) -> None:
    """Stop the patches for `app`; take them off when no other app of the process has them."""
    with _lock:
        if is_patched(app):
            delattr(app, ACTIVE)
        unwrap_tasks(app, patches)
        if not any(patched_apps()):
            # The last one put on lies on top.
            for patch in reversed(patches):
                for target in reversed(patch.targets):
                    _take_off(target)


def wrap_tasks(app: Celery, patches: Iterable[Wrapping]) -> None:
    """Wrap the built-in tasks of a finalized app."""
    for patch in patches:
        for target in patch.task_targets if patch.is_needed() else ():
            task = app._tasks.get(target.task)  # app.tasks would finalize the app once more
            if task is not None and not _is_around(vars(task).get(target.method), patch):
                original = getattr(task, target.method)
                guarded = _guarded(patch, target, app_of_instance, original)
                setattr(task, target.method, guarded)


def unwrap_tasks(app: Celery, patches: Iterable[Wrapping]) -> None:
    """Take the wrappers off the built-in tasks of `app`."""
    for target in {target for patch in patches for target in patch.task_targets}:
        task: Any = app._tasks.get(target.task)
        if task is not None and isinstance(vars(task).get(target.method), _Guarded):
            delattr(task, target.method)  # the class has the original


def _put_on_when_imported(patch: Wrapping, target: Target) -> None:
    if target.original is not None:
        return
    if target.module in sys.modules:
        _put_on(patch, target)
    elif not target.is_hooked:
        target.is_hooked = True
        # The hook stays for good; it acts only while some app has the patches.
        wrapt.register_post_import_hook(
            lambda _: _put_on(patch, target) if any(patched_apps()) else None, target.module
        )


def _put_on(patch: Wrapping, target: Target) -> None:
    with _lock:
        if target.original is not None:
            return
        try:
            owner, attribute, _ = wrapt.resolve_path(target.module, target.path)
            own = vars(owner).get(attribute)
            original = getattr(owner, attribute) if own is None else own
        except (ImportError, AttributeError) as exc:
            target.missing = f"{target.name} is not there in this Celery ({exc})"
            logger.error("chordguard: %s; the fix %s does not act", target.missing, patch.name)
            return
        target.missing = None
        target.original = (owner, attribute, own is not None, original)
        setattr(owner, attribute, _guarded(patch, target, target.app_of, original))


def _take_off(target: Target) -> None:
    if target.original is None:
        return
    owner, attribute, was_own, original = target.original
    now = vars(owner).get(attribute)
    if not isinstance(now, _Guarded) or now._self_acts is not target.wrapper:
        # Somebody wrapped it after us: ours stays beneath and calls straight through.
        return
    if was_own:
        setattr(owner, attribute, original)
    else:
        delattr(owner, attribute)
    target.original = None


class _Guarded(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A function that one of our wrappers lies around."""

    def __init__(self, original: Any, guard: Wrapper, patch: Wrapping, wrapper: Wrapper) -> None:
        super().__init__(original, guard)
        self._self_patch = patch
        self._self_acts = wrapper


def _guarded(
    patch: Wrapping,
    target: Target | TaskTarget,
    app_of: Callable[[Any, tuple[Any, ...]], Any],
    original: Any,
) -> _Guarded:
    wrapper, takes = target.wrapper, tuple(target.takes.items())

    def guard(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not patch.is_active(app_of(instance, args)):
            return wrapped(*args, **kwargs)
        if not takes:
            return wrapper(wrapped, instance, args, kwargs)
        taken = {
            name: args[position] if position < len(args) else kwargs.get(name)
            for name, position in takes
        }
        return wrapper(wrapped, instance, args, kwargs, **taken)

    return _Guarded(original, guard, patch, wrapper)


def is_ours(function: Any) -> bool:
    """Tell whether `function` is a wrapper of ours around another one."""
    return isinstance(function, _Guarded)


def _is_around(function: Any, patch: Wrapping) -> bool:
    while isinstance(function, _Guarded):
        if function._self_patch is patch:
            return True
        function = function.__wrapped__
    return False
