"""The patch engine: how a fix is declared, put on Celery, asked for, and taken off again.

A fix is declared beside its code as a :class:`Patch`: what it mends, the Celery versions that
have the defect, and the functions it wraps. Importing the module puts it in the registry.
Wrapping is done with wrapt and is process-wide; whether a wrapper acts is asked on every
call, of the app that the call is for. For an app without the patches, or with the fix
switched off, the wrapper calls straight through.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import wrapt

from . import settings

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Outcome", "Patch", "Target", "activate", "celery_version", "deactivate", "registry")

logger = logging.getLogger("chordguard")

Version = tuple[int, ...]
Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]

#: The generator header's `zip` is gone: https://github.com/celery/celery/pull/7964
celery_5_3: Version = (5, 3)
#: Errbacks that are data are linked to groups, too (`celery.canvas.group.link_error`).
celery_5_4: Version = (5, 4)
#: The database backend creates its tables at set-up:
#: https://docs.celeryq.dev/en/stable/userguide/configuration.html
celery_5_5: Version = (5, 5)
#: A group that is a body is failed member by member: https://github.com/celery/celery/pull/9773
celery_5_6: Version = (5, 6)
#: Nested groups have ids of their own, failures reach chord steps of a chain, `chord_unlock`
#: fails a chord that it can no longer poll: https://docs.celeryq.dev/en/latest/changelog.html
celery_5_7: Version = (5, 7)

#: Versions on which the whole suite, or the conformance table, passes.
TESTED_VERSIONS = ("5.2.7", "5.3.6", "5.4.0", "5.5.3", "5.6.3", "5.7.0")

#: The result backends that a fix is for, as the README's table names them. What concerns one SQL
#: database alone names that as SQLAlchemy does: ``"sqlite"``.
REDIS, SQL = "Redis", "SQL"

_BACKEND_OF_DRIVER = {"redis": REDIS, "sqlalchemy": SQL}

#: The attribute of an app that says which patches are active for it.
_ACTIVE = "_chordguard"

_lock = threading.RLock()


@cache
def celery_version() -> Version:
    """Return the installed Celery's version as numbers: ``5.7.0rc1`` is ``(5, 7, 0)``."""
    from celery import VERSION

    return (
        int(VERSION.major),
        int(VERSION.minor),
        int("".join(character for character in str(VERSION.micro) if character.isdigit()) or 0),
    )


def installed_version(package: str) -> str:
    """Return the version of an installed package as text, also where it does not tell one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


@cache
def driver_version(package: str) -> Version:
    """Return the version of an installed package as numbers; none where it is not known."""
    numbers = re.match(r"[\d.]*\d", installed_version(package))
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def lies_in(version: Version, since: Version | None, until: Version | None) -> bool:
    """Tell whether `version` is `since` or later, and earlier than `until`."""
    return (since or version) <= version < (until or (sys.maxsize,))


def _concerns(backends: Collection[str], names: Collection[str]) -> bool:
    return not backends or any(name in backends for name in names)


def app_of_instance(instance: Any, _args: tuple[Any, ...]) -> Any:
    """Return the app of the object that a method was called on."""
    return getattr(instance, "app", None)


@dataclass
class Target:
    """One function that a patch wraps: ``module`` and the path of the function in it."""

    module: str
    path: str
    wrapper: Wrapper
    app_of: Callable[[Any, tuple[Any, ...]], Any]
    since: Version | None = None
    until: Version | None = None
    #: What stood there before: (owner, attribute, was it the owner's own, original).
    original: tuple[Any, str, bool, Any] | None = None
    missing: str | None = None
    is_hooked: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"


@dataclass(frozen=True)
class TaskTarget:
    """A method of a built-in task that a patch wraps, for each app on its own."""

    task: str
    method: str
    wrapper: Wrapper


@dataclass
class Patch:
    """One fix.

    Attributes:
        name: The name shared by module, switch (``chord_fix_<name>``), test and README row.
        defects: The ids of the defects that it mends, as the README's table lists them, each with
            what a user sees of it, in one line.
        since: The first Celery version that has the defect; None: all have it.
        until: The first Celery version after it that does not; None: all have it.
        driver: The optional package without which the target cannot be imported.
        driver_since: The first version of `driver` with which the defect shows; None: with all.
        driver_until: The first version after it with which it does not; None: with all.
        mended: Of its defects those that Celery mends earlier, with the version that does.
        arisen: Of its defects those that came with a later Celery, with that version.
        is_opt_in: Whether it acts only where its switch is set to True, since Celery documents what
            it changes.
        backends: The result backends that it is for; empty: all of them, also those that
            chordguard does not support. By default that of its driver.
        only_on: Of its defects those that only some of these backends have, with their names.
        needs_ledger: Whether it acts only on a chord that is in the ledger.
    """

    name: str
    defects: Mapping[str, str]
    since: Version | None = None
    until: Version | None = None
    driver: str | None = None
    driver_since: Version | None = None
    driver_until: Version | None = None
    mended: dict[str, Version] = field(default_factory=dict)
    arisen: dict[str, Version] = field(default_factory=dict)
    is_opt_in: bool = False
    backends: tuple[str, ...] = ()
    only_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    needs_ledger: bool = False
    targets: list[Target] = field(default_factory=list)
    task_targets: list[TaskTarget] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name in registry:
            raise ValueError(f"two patches are called {self.name!r}")
        if not self.backends and self.driver in _BACKEND_OF_DRIVER:
            self.backends = (_BACKEND_OF_DRIVER[self.driver],)
        registry[self.name] = self

    @property
    def setting(self) -> str:
        """The name of the switch."""
        return settings.FIX_PREFIX + self.name

    def wraps(
        self,
        module: str,
        path: str,
        *,
        app_of: Callable[[Any, tuple[Any, ...]], Any] = app_of_instance,
        since: Version | None = None,
        until: Version | None = None,
    ) -> Callable[[Wrapper], Wrapper]:
        """Declare that the decorated wrapt wrapper wraps the function `path` of `module`.

        `app_of` finds the app of a call; `since` and `until` gate this target alone.
        """

        def declare(wrapper: Wrapper) -> Wrapper:
            self.targets.append(Target(module, path, wrapper, app_of, since, until))
            return wrapper

        return declare

    def wraps_task(self, name: str, method: str = "run") -> Callable[[Wrapper], Wrapper]:
        """Declare that the decorated wrapper wraps a method of the built-in task `name`.

        Celery makes these tasks anew for each app when the app is finalized.
        """

        def declare(wrapper: Wrapper) -> Wrapper:
            self.task_targets.append(TaskTarget(name, method, wrapper))
            return wrapper

        return declare

    def is_needed(self) -> bool:
        """Tell whether the installed Celery, with the installed driver, has the defect."""
        return lies_in(celery_version(), self.since, self.until) and self.driver_shows_it()

    def driver_shows_it(self) -> bool:
        """Tell whether the defect shows with the installed driver, or would with an absent one."""
        if self.driver is None or (self.driver_since is None and self.driver_until is None):
            return True
        if self.driver_is_absent():
            return True
        return lies_in(driver_version(self.driver), self.driver_since, self.driver_until)

    def defects_here(self) -> tuple[str, ...]:
        """Return those of its defects that the installed Celery has."""
        if not self.is_needed():
            return ()
        version = celery_version()
        return tuple(
            defect
            for defect in self.defects
            if lies_in(version, self.arisen.get(defect), self.mended.get(defect))
        )

    def defects_on(self, names: Collection[str]) -> tuple[str, ...]:
        """Return those of its defects that the installed Celery has on one result backend.

        `names` are what that backend is called here, see :func:`chordguard.backends.names_of`.
        """
        return tuple(
            defect
            for defect in self.defects_here()
            if self.is_for(names) and _concerns(self.only_on.get(defect, ()), names)
        )

    def is_for(self, names: Collection[str]) -> bool:
        """Tell whether it is for the result backend that is called `names`."""
        return _concerns(self.backends, names)

    def is_active(self, app: Any) -> bool:
        """Tell whether the fix acts for `app` now."""
        return is_patched(app) and self.is_switched_on(app)

    def is_switched_on(self, app: Any) -> bool:
        """Tell what its switch says."""
        return bool(settings.get(app, self.setting, is_on=not self.is_opt_in))

    def driver_is_absent(self) -> bool:
        return self.driver is not None and importlib.util.find_spec(self.driver) is None

    def targets_here(self) -> list[Target]:
        """Return the targets that the installed Celery's defect asks for."""
        if not self.is_needed():
            return []
        version = celery_version()
        return [target for target in self.targets if lies_in(version, target.since, target.until)]


@dataclass(frozen=True)
class Outcome:
    """What became of one patch for one app: a line of the report."""

    patch: str
    defects: tuple[str, ...]
    #: One of "applied", "waiting", "skipped", "failed".
    status: str
    reason: str

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.patch}: {self.status}{reason}"


#: Every patch by name, in the order in which they are put on.
registry: dict[str, Patch] = {}


def is_patched(app: Any) -> bool:
    """Tell whether the patches are installed for `app`."""
    return getattr(app, _ACTIVE, False) is True


def patched_apps() -> Iterator[Any]:
    """Yield the apps that have the patches."""
    from celery._state import _get_active_apps

    return (app for app in _get_active_apps() if is_patched(app))


def activate(app: Celery) -> None:
    """Put the patches on, once for the process, and let them act for `app`."""
    with _lock:
        for patch in registry.values():
            for target in patch.targets_here():
                _put_on_when_imported(patch, target)
        setattr(app, _ACTIVE, True)


def deactivate(app: Celery) -> None:
    """Stop the patches for `app`; take them off when no other app of the process has them."""
    with _lock:
        if is_patched(app):
            delattr(app, _ACTIVE)
        unwrap_tasks(app)
        if not any(patched_apps()):
            # The last one put on lies on top.
            for patch in reversed(registry.values()):
                for target in reversed(patch.targets):
                    _take_off(target)


def wrap_tasks(app: Celery) -> None:
    """Wrap the built-in tasks of a finalized app."""
    for patch in registry.values():
        for target in patch.task_targets if patch.is_needed() else ():
            task = app._tasks.get(target.task)  # app.tasks would finalize the app once more
            if task is not None and not _is_around(vars(task).get(target.method), patch):
                original = getattr(task, target.method)
                guarded = _guarded(patch, target.wrapper, app_of_instance, original)
                setattr(task, target.method, guarded)


def unwrap_tasks(app: Celery) -> None:
    """Take the wrappers off the built-in tasks of `app`."""
    for target in {target for patch in registry.values() for target in patch.task_targets}:
        task: Any = app._tasks.get(target.task)
        if task is not None and isinstance(vars(task).get(target.method), _Guarded):
            delattr(task, target.method)  # the class has the original


def outcomes(app: Celery) -> list[Outcome]:
    """Return what became of each patch for `app`."""
    return [_outcome(patch, app) for patch in registry.values()]


def _outcome(patch: Patch, app: Celery) -> Outcome:
    def line(status: str, reason: str = "") -> Outcome:
        return Outcome(patch.name, tuple(patch.defects), status, reason)

    if not is_patched(app):
        return line("skipped", "the patches are not installed for this app")
    if not patch.is_needed():
        if patch.since is not None and celery_version() < patch.since:
            version = ".".join(map(str, patch.since))
            return line("skipped", f"not needed: it came with Celery {version}")
        if patch.until is not None and celery_version() >= patch.until:
            version = ".".join(map(str, patch.until))
            return line("skipped", f"not needed: mended in Celery {version}")
        installed = f"{patch.driver} {installed_version(patch.driver or '')}"
        return line("skipped", f"not needed: it does not show with {installed}")
    if app.configured and not patch.is_switched_on(app):
        if patch.is_opt_in:
            return line("skipped", f"off unless {patch.setting} = True")
        return line("skipped", f"switched off by {patch.setting}")
    missing = [target.missing for target in patch.targets_here() if target.missing]
    if missing:
        return line("failed", "; ".join(missing))
    if patch.driver_is_absent():
        return line("skipped", f"the package {patch.driver} is not installed")
    waiting = [target for target in patch.targets_here() if target.original is None]
    if waiting:
        return line("waiting", f"applied as soon as {waiting[0].module} is imported")
    if patch.task_targets and not app.finalized:
        return line("waiting", "applied as soon as the app is finalized")
    return line("applied")


def _put_on_when_imported(patch: Patch, target: Target) -> None:
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


def _put_on(patch: Patch, target: Target) -> None:
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
        setattr(owner, attribute, _guarded(patch, target.wrapper, target.app_of, original))


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

    def __init__(self, original: Any, guard: Wrapper, patch: Patch, wrapper: Wrapper) -> None:
        super().__init__(original, guard)
        self._self_patch = patch
        self._self_acts = wrapper


def _guarded(
    patch: Patch,
    wrapper: Wrapper,
    app_of: Callable[[Any, tuple[Any, ...]], Any],
    original: Any,
) -> _Guarded:
    def guard(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not patch.is_active(app_of(instance, args)):
            return wrapped(*args, **kwargs)
        return wrapper(wrapped, instance, args, kwargs)

    return _Guarded(original, guard, patch, wrapper)


def is_ours(function: Any) -> bool:
    """Tell whether `function` is a wrapper of ours around another one."""
    return isinstance(function, _Guarded)


def _is_around(function: Any, patch: Patch) -> bool:
    while isinstance(function, _Guarded):
        if function._self_patch is patch:
            return True
        function = function.__wrapped__
    return False
