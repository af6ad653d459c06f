"""How a fix is declared: its defects, the versions that have them, the functions it wraps.

Whether a wrapper acts is asked on every call, of the app that the call is for. For an app without
the patches, or with the fix switched off, it calls straight through.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .. import settings
from . import versions
from .versions import Version, lies_in

__all__ = (
    "ACTIVE",
    "BY_NAME",
    "COUNTING",
    "DJANGO",
    "POLLED",
    "REDIS",
    "SQL",
    "Defect",
    "Foundation",
    "Patch",
    "Target",
    "TaskTarget",
    "Wrapper",
    "Wrapping",
    "app_of_instance",
    "is_patched",
    "patched_apps",
)

Wrapper = Callable[..., Any]

#: The result backends that a fix is for, as the README's table names them. What concerns one SQL
#: database alone names that as SQLAlchemy does: ``"sqlite"``.
REDIS, SQL, DJANGO = "Redis", "SQL", "Django"
#: Others by the way in which Celery ends chords there: `celery.chord_unlock` polls them, or the
#: counter of a key-value store counts their members.
POLLED, COUNTING = "polled", "counting"

_BACKENDS_OF_DRIVER: Mapping[str | None, tuple[str, ...]] = {
    "redis": (REDIS,),
    "sqlalchemy": (SQL,),
    "django_celery_results": (DJANGO,),
}

#: The position of an argument that is always given by its name.
BY_NAME = sys.maxsize

#: For a wrapper that takes no arguments by name.
NOTHING: Mapping[str, int] = MappingProxyType({})

#: The attribute of an app that says which patches are active for it.
ACTIVE = "_chordguard"


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
    #: The arguments that the wrapper takes beside wrapt's, by name, with their positions.
    takes: Mapping[str, int] = field(default_factory=dict)
    #: What stood there before: (owner, attribute, was it the owner's own, original).
    original: tuple[Any, str, bool, Any] | None = None
    #: Whether the app may never import the module.
    is_optional: bool = False
    missing: str | None = None
    is_hooked: bool = False

    @property
    def name(self) -> str:
        """The dotted path of the function."""
        return f"{self.module}.{self.path}"


@dataclass(frozen=True, eq=False)
class TaskTarget:
    """A method of a built-in task that a patch wraps, for each app on its own."""

    task: str
    method: str
    wrapper: Wrapper
    takes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Defect:
    """A defect of Celery that a patch closes.

    Attributes:
        id: Its id, such as ``"A1"``.
        symptom: What a user sees of it, in one line.
        since: The first Celery version that has it; None: all have it.
        until: The first Celery version after that which does not; None: all have it.
        only_on: The result backends that have it, if they are fewer than those of its patch.
    """

    id: str
    symptom: str
    since: Version | None = None
    until: Version | None = None
    only_on: tuple[str, ...] = ()

    def is_here(self) -> bool:
        """Tell whether the installed Celery has it."""
        return lies_in(versions.celery_version(), self.since, self.until)


class Wrapping:
    """Functions of Celery that are wrapped, and whether the wrappers act for an app."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.targets: list[Target] = []
        self.task_targets: list[TaskTarget] = []

    def wraps(
        self,
        module: str,
        path: str,
        *,
        takes: Mapping[str, int] = NOTHING,
        app_of: Callable[[Any, tuple[Any, ...]], Any] = app_of_instance,
        since: Version | None = None,
        until: Version | None = None,
        is_optional: bool = False,
    ) -> Callable[[Wrapper], Wrapper]:
        """Declare that the decorated wrapt wrapper wraps the function `path` of `module`.

        Arguments:
            module: The module, which is not imported for it.
            path: The path of the function in it.
            takes: Arguments of the function that the wrapper takes as keyword arguments, with
                their positions; one that a call leaves out is None.
            app_of: Returns the app of a call.
            since: The first Celery version whose function is wrapped; None: all.
            until: The first version after it whose function is not; None: all.
            is_optional: Whether the app may never import the module, such as that of a result
                backend which it does not use.
        """

        def declare(wrapper: Wrapper) -> Wrapper:
            target = Target(module, path, wrapper, app_of, since, until, takes)
            self.targets.append(replace(target, is_optional=is_optional))
            return wrapper

        return declare

    def wraps_task(
        self, name: str, method: str = "run", *, takes: Mapping[str, int] = NOTHING
    ) -> Callable[[Wrapper], Wrapper]:
        """Declare that the decorated wrapper wraps a method of the built-in task `name`.

        Celery makes these tasks anew for each app when the app is finalized.
        """

        def declare(wrapper: Wrapper) -> Wrapper:
            self.task_targets.append(TaskTarget(name, method, wrapper, takes))
            return wrapper

        return declare

    def is_needed(self) -> bool:
        """Tell whether the functions are wrapped at all."""
        return True

    def is_active(self, app: Any) -> bool:
        """Tell whether the wrappers act for `app` now."""
        return is_patched(app)

    def targets_here(self) -> list[Target]:
        """Return the targets that the installed Celery asks for."""
        if not self.is_needed():
            return []
        version = versions.celery_version()
        return [target for target in self.targets if lies_in(version, target.since, target.until)]


class Foundation(Wrapping):
    """Wrappers that several patches build on: without a defect and a switch of their own."""


class Patch(Wrapping):
    """One fix.

    Arguments:
        name: The name shared by module, switch (``chord_fix_<name>``), test and README row.
        defects: What it closes.
        driver: The optional package without which the target cannot be imported.
        driver_versions: The first version of `driver` with which the defects show, and the first
            after it with which they do not; None: with all.
        is_opt_in: Whether it acts only where its switch is set to True, since Celery documents
            what it changes.
        backends: The result backends that it is for; empty: all of them. By default that of its
            driver.
        needs_ledger: Whether it acts only on a chord that is in the ledger.
        needs_setting: The setting without which it does nothing.
    """

    def __init__(
        self,
        name: str,
        *defects: Defect,
        driver: str | None = None,
        driver_versions: tuple[Version | None, Version | None] = (None, None),
        is_opt_in: bool = False,
        backends: tuple[str, ...] = (),
        needs_ledger: bool = False,
        needs_setting: str | None = None,
    ) -> None:
        super().__init__(name)
        self.defects = defects
        self.driver = driver
        self.driver_since, self.driver_until = driver_versions
        self.is_opt_in = is_opt_in
        self.backends = backends or _BACKENDS_OF_DRIVER.get(driver, ())
        self.needs_ledger = needs_ledger
        self.needs_setting = needs_setting

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its defects."""
        return tuple(defect.id for defect in self.defects)

    @property
    def since(self) -> Version | None:
        """The first Celery version that has one of its defects; None: all have one."""
        return min((each.since or () for each in self.defects), default=()) or None

    @property
    def until(self) -> Version | None:
        """The first Celery version after that which has none; None: all have one."""
        ends = [each.until for each in self.defects]
        return None if None in ends else max(filter(None, ends), default=None)

    @property
    def setting(self) -> str:
        """The name of the switch."""
        return settings.FIX_PREFIX + self.name

    def is_needed(self) -> bool:
        """Tell whether the installed Celery, with the installed driver, has a defect of it."""
        return any(defect.is_here() for defect in self.defects) and self.driver_shows_it()

    def driver_shows_it(self) -> bool:
        """Tell whether the defect shows with the installed driver, or would with an absent one."""
        if self.driver is None or (self.driver_since is None and self.driver_until is None):
            return True
        if self.driver_is_absent():
            return True
        return lies_in(versions.driver_version(self.driver), self.driver_since, self.driver_until)

    def defects_here(self) -> tuple[Defect, ...]:
        """Return those of its defects that the installed Celery has."""
        if not self.is_needed():
            return ()
        return tuple(defect for defect in self.defects if defect.is_here())

    def defects_on(self, names: Collection[str]) -> tuple[Defect, ...]:
        """Return those of its defects that the installed Celery has on one result backend.

        `names` are its names, as :func:`chordguard.upstream.backends.names_of` returns them.
        """
        return tuple(
            defect
            for defect in self.defects_here()
            if self.is_for(names) and _concerns(defect.only_on, names)
        )

    def is_for(self, names: Collection[str]) -> bool:
        """Tell whether it is for the result backend that is called `names`."""
        return _concerns(self.backends, names)

    def is_active(self, app: Any) -> bool:
        """Tell whether the fix acts for `app` now."""
        return is_patched(app) and self.is_asked_for(app) and self.is_switched_on(app)

    def is_asked_for(self, app: Any) -> bool:
        """Tell whether the setting that it needs, if any, is set."""
        name = self.needs_setting
        return name is None or settings.get(app, name) is not None

    def is_switched_on(self, app: Any) -> bool:
        """Tell what its switch says."""
        return bool(settings.get(app, self.setting, is_on=not self.is_opt_in))

    def driver_is_absent(self) -> bool:
        """Tell whether its optional package is not installed."""
        return self.driver is not None and importlib.util.find_spec(self.driver) is None


def is_patched(app: Any) -> bool:
    """Tell whether the patches are installed for `app`."""
    return getattr(app, ACTIVE, False) is True


def patched_apps() -> Iterator[Any]:
    """Yield the apps that have the patches."""
    from celery._state import _get_active_apps

    return (app for app in _get_active_apps() if is_patched(app))
