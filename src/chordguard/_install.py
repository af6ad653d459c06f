"""Install the patches for an app, take them out again, and tell what was done."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.signals import worker_ready

from . import settings
from .engine.patch import Wrapping, is_patched
from .engine.report import Outcome
from .engine.versions import TESTED_VERSIONS
from .engine.wrapping import activate, deactivate, wrap_tasks
from .errors import UntestedCeleryWarning
from .lifecycle import starting
from .patches import outcomes, registry
from .upstream import backends, hooks, sessions, stores

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("Report", "install_patches", "patch_report", "uninstall_patches")

logger = logging.getLogger("chordguard")

#: The bootstep that starts the watchdog in a worker.
_WATCHDOG = "chordguard.recovery.watchdog:WatchdogStep"


@dataclass(frozen=True)
class Report:
    """What became of each patch for one app.

    Attributes:
        celery: The installed Celery's version.
        outcomes: A line for each patch, in the order in which they are put on.
        notes: What else the reader has to know, such as a function of Celery that is replaced.
        chords: What holds for chords on the app's result backend: whether a ledger counts them,
            or Celery, whether they are polled or refused; what to do for more. Empty for an app
            that is not configured yet.
    """

    celery: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()
    chords: str = ""

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __getitem__(self, patch: str) -> Outcome:
        for outcome in self.outcomes:
            if outcome.patch == patch:
                return outcome
        raise KeyError(patch)

    def __str__(self) -> str:
        lines = [f"chordguard on Celery {self.celery}"]
        lines += [f"  {outcome}" for outcome in self.outcomes]
        lines += [f"  {self.chords}"] if self.chords else []
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def install_patches(app: Celery) -> Report:
    """Install chordguard's patches for `app`.

    Call it where the app is created, in every process that starts chords (web, beat,
    shell) and in every worker. It may come before or after the app is configured or
    finalized, for several apps, and twice: the second call changes nothing.

    Returns:
        What became of each patch, and why. :func:`patch_report` gives it again.

    Raises:
        SettingError: A setting makes no sense; the message names it, its value and the
            valid ones. For an app that is configured later, it is raised when that app
            is finalized. Nothing is installed then.
        TypeError: `app` is not a Celery app.
    """
    app = _real_app(app)
    if app.configured or app.finalized:
        _check(app)
    if not is_patched(app):
        _warn_of_untested_celery()
        activate(app, _wrappings())
        if app.finalized:
            wrap_tasks(app, _wrappings())
        else:
            _check_before_finalize(app)
            app.on_after_finalize.connect(_when_finalized, weak=False)
        worker_ready.connect(_tell_of_chords, weak=False)
        # By name: only a worker imports it.
        app.steps["worker"].add(_WATCHDOG)
    return patch_report(app)


def uninstall_patches(app: Celery) -> None:
    """Take the patches out of `app`; the last app takes the wrappers off Celery.

    Chords under way end as stock Celery ends them.

    Raises:
        TypeError: `app` is not a Celery app.
    """
    app = _real_app(app)
    deactivate(app, _wrappings())
    vars(app).pop("finalize", None)
    app.steps["worker"].discard(_WATCHDOG)


def patch_report(app: Celery) -> Report:
    """Return what became of each patch for `app`.

    Raises:
        TypeError: `app` is not a Celery app.
    """
    import celery

    app = _real_app(app)
    from .monitoring.standing import standing

    notes: list[str] = []
    chords = ""
    if is_patched(app) and app.configured:
        notes += map(str, hooks.found(app))
        chords = standing(app)
    return Report(celery.__version__, tuple(outcomes(app)), tuple(notes), chords)


def _wrappings() -> tuple[Wrapping, ...]:
    """Return what is put on Celery, the last one outermost."""
    return (*registry.values(), sessions.foundation, starting.foundation)


def _real_app(app: Any) -> Any:
    from celery import Celery

    if hasattr(app, "_get_current_object"):  # celery.current_app
        app = app._get_current_object()
    if not isinstance(app, Celery):
        raise TypeError(
            f"expected a Celery app, got {app!r}: call install_patches(app) where the app is made"
        )
    return app


def _check(app: Any) -> None:
    settings.check(app, tuple(registry))
    stores.check(app)


def _check_before_finalize(app: Any) -> None:
    """Have the settings checked before Celery finalizes `app`.

    Later would be too late: Celery's signals swallow errors, and an app whose finalization
    was cut short counts as finalized.
    """
    app.finalize = _CheckedFinalize(app)


class _CheckedFinalize:
    """Takes the place of an app's `finalize`: asked what to call, it checks the settings first.

    The call is that of Celery's own function alone. Where ours called it, Celery's warnings about
    the tasks of the app, which name the first caller outside of Celery, would name chordguard.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def __call__(self) -> Any:
        app = self._app
        if not app.finalized and is_patched(app):
            _check(app)
        return partial(type(app).finalize, app)


def _when_finalized(sender: Celery, **_: Any) -> None:
    if is_patched(sender):
        wrap_tasks(sender, _wrappings())


def _tell_of_chords(sender: Any = None, **_: Any) -> None:
    """Say in the log of a worker what holds for its chords, and if they are polled too briefly."""
    from .monitoring.polls import short_polling
    from .monitoring.standing import standing

    app: Any = getattr(sender, "app", None)
    if is_patched(app):
        is_missing = settings.get(app, "chord_ledger") and backends.why_without_ledger(app)
        logger.log(logging.WARNING if is_missing else logging.INFO, "%s", standing(app))
    task = app._tasks.get("celery.chord_unlock") if is_patched(app) else None
    warning = short_polling(app, task) if task is not None else None
    if warning:
        logger.warning("%s", warning)


def _warn_of_untested_celery() -> None:
    import celery

    if celery.__version__ not in TESTED_VERSIONS:
        warnings.warn(
            f"chordguard was not tested with Celery {celery.__version__}, only with "
            f"{', '.join(TESTED_VERSIONS)}. The patches whose targets look as expected "
            "are applied; see patch_report(app).",
            UntestedCeleryWarning,
            stacklevel=3,
        )
