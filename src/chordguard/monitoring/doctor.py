"""Examine an app: what became of the patches, and what in its settings endangers chords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .. import settings
from ..engine.patch import REDIS, is_patched
from ..engine.versions import TESTED_VERSIONS, celery_5_7, celery_version
from ..errors import SettingError
from ..ledger.access import bounded_of_kind
from ..patches import outcomes, registry
from ..upstream import backends, hooks, stores
from ..upstream.apps import finalize
from ..upstream.hooks import UNLOCK
from .defects import backend_of, is_counted, is_open
from .polls import annotations_of, polls_are_ours, short_polling, stays_pending
from .standing import lacking

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "Finding",
    "ask_backend",
    "examine",
)

#: Seconds below which `result_expires` is called too short.
SHORT_EXPIRY = 3600
#: Seconds that Celery gives the reading of a header's results by default.
JOIN_TIMEOUT = 3.0
#: From this likeness (0 to 1) on, an unknown setting is taken for a mistyped one.
SIMILAR = 0.8
#: So many names are listed in one finding.
NAMES_SHOWN = 5


#: Seconds after which a server that is asked is given up.
ASKED_SECONDS = 2.0

LEFT_TO_CELERY = "chords are left to Celery alone"
GRANT = "grant it to the user of the result backend"
NO_TABLES = f"its tables are not there: until they are, {LEFT_TO_CELERY}"
MIGRATE = "run `manage.py migrate chordguard`"
CREATE = (
    "start a worker whose database user may create them, or have the output of "
    "`python -m chordguard ddl` executed"
)


@dataclass(frozen=True)
class Finding:
    """Something dangerous in an app.

    Attributes:
        subject: The setting, or what else it is about.
        danger: What can happen.
        remedy: What to do about it.
        defect: The id of the defect of Celery that makes it dangerous; None: it is by itself.
    """

    subject: str
    danger: str
    remedy: str
    defect: str | None = None

    def __str__(self) -> str:
        defect = f" ({self.defect})" if self.defect else ""
        return f"{self.subject}{defect}: {self.danger}\n    -> {self.remedy}"


@dataclass(frozen=True)
class Look:
    """Something that is looked at in an app.

    Attributes:
        find: Yields what is dangerous.
        defect: The id of the defect of Celery without which it is not; None: it always is.
    """

    find: Callable[[Celery], Iterator[Finding]]
    defect: str | None = None

    def __call__(self, app: Celery) -> Iterator[Finding]:
        if self.defect is None:
            yield from self.find(app)
        elif is_open(app, self.defect):
            yield from (replace(finding, defect=self.defect) for finding in self.find(app))


def examine(app: Celery) -> list[Finding]:
    """Return what endangers the chords of `app`, what weighs most first.

    The app is finalized for it, since its tasks are looked at; nothing is started.
    """
    findings = [*_missing_patches(app), *_wrong_settings(app), *_unread_settings(app)]
    for look in LOOKS:
        findings += look(app)
    if _is_whole(app):
        for look in LOOKS_AT_TASKS:
            findings += look(app)
    return findings


def ask_backend(app: Celery, seconds: float = ASKED_SECONDS) -> list[Finding]:
    """Return what the result backend refuses to do for the ledger; it is connected to.

    Nothing is changed for it, and no table is created.

    Arguments:
        app: The app, with the patches.
        seconds: After which an answer is given up.

    Raises:
        CannotTell: The result backend cannot be read.
    """
    keeps_ledger = backends.capabilities_of(app).keeps_ledger or stores.has_store(app)
    if not (keeps_ledger and settings.get(app, "chord_ledger")):
        return []
    with bounded_of_kind(app, seconds) as ledger:
        if ledger is None:
            return []
        if not ledger.is_there():
            remedy = MIGRATE if backends.is_django(ledger.backend) else CREATE
            return [Finding("the ledger", NO_TABLES, remedy)]
        refused = ledger.refused()
    return [
        Finding(what, f"the result backend refuses it ({why}): {LEFT_TO_CELERY}", GRANT)
        for what, why in refused.items()
    ]


def _missing_patches(app: Celery) -> Iterator[Finding]:
    import celery

    if not is_patched(app):
        yield Finding(
            "install_patches",
            "this app has not called it, so its chords are those of Celery alone",
            "call chordguard.install_patches(app) in the module that creates the app, so that "
            "every process that starts chords and every worker does",
        )
    else:
        for outcome in outcomes(app):
            if outcome.status == "failed":
                yield Finding(
                    f"the fix {outcome.patch}",
                    f"it does not act: {outcome.reason}",
                    "use a tested Celery, or look for a newer chordguard",
                )
    if celery.__version__ not in TESTED_VERSIONS:
        yield Finding(
            f"Celery {celery.__version__}",
            "chordguard was not tested with it; the patches whose targets look as expected act",
            f"use one of {', '.join(TESTED_VERSIONS)}, or look for a newer chordguard",
        )


def _wrong_settings(app: Celery) -> Iterator[Finding]:
    """Yield the settings of ours that make no sense."""
    remedy = "correct it where the app is configured"
    if not _is_whole(app):
        remedy += ", then look again: until then Celery cannot make all tasks of the app"
    wrong: dict[str, None] = {}
    for name in _known_names():
        try:
            _check_one(app, name)
        except SettingError as exc:
            wrong.setdefault(str(exc))
    try:
        settings.check(app, tuple(registry))  # stops at the first
    except SettingError as exc:
        wrong.setdefault(str(exc))
    for message in wrong:
        yield Finding("invalid setting", message, remedy)


def _unread_settings(app: Celery) -> Iterator[Finding]:
    """Yield the settings that look like ours and that nobody reads."""
    known, found = _known_names(), _our_names(app)
    for name in sorted(found - set(known)):
        similar = get_close_matches(name, known, 1, SIMILAR)
        yield Finding(
            name,
            "there is no such setting, so nobody reads it",
            f"did you mean {similar[0]}?" if similar else "remove it",
        )
    ignored = sorted(found & set(known))
    if ignored and not is_patched(app):
        yield Finding(
            _some(ignored),
            "set, but Celery alone does not know such settings and ignores them",
            "call chordguard.install_patches(app), or do not rely on them",
        )


def _is_whole(app: Celery) -> bool:
    """Finalize the app; tell whether its settings let Celery make all its tasks."""
    try:
        finalize(app)
        if is_patched(app):
            settings.check(app, tuple(registry))
    except SettingError:
        return False
    return True


def _known_names() -> tuple[str, ...]:
    return (*settings.SETTINGS, *(settings.FIX_PREFIX + fix for fix in registry))


def _check_one(app: Celery, name: str) -> None:
    missing = object()
    value = app.conf.get(name, missing)
    if value is not missing:
        settings.check_value(name, value)


def _our_names(app: Celery) -> set[str]:
    """Return the names of the app's settings that look like ours."""
    prefix = (getattr(app.conf, "prefix", None) or "").lower()
    names = {str(key).lower().removeprefix(prefix) for key in app.conf}
    return {name for name in names if name.startswith("chord_")}


def _short_bound(app: Celery) -> Iterator[Finding]:
    task = app.tasks.get(UNLOCK)
    warning = short_polling(app, task) if task is not None else None
    if warning:
        subject, _, danger = warning.partition(": ")
        yield Finding(
            subject,
            danger,
            "remove the bound and let chord_timeout (seconds without progress) end such chords, "
            "or raise it to the longest time that a header may take, divided by the delay",
            defect="C2" if stays_pending(app) else None,
        )


def _useless_annotations(app: Celery) -> Iterator[Finding]:
    useless = sorted(
        key
        for _, attributes in annotations_of(app)
        for key in attributes
        if key.startswith("retry_backoff") or key == "retry_jitter"
    )
    if useless and backends.capabilities_of(app).polls and not stores.has_store(app):
        yield Finding(
            f"task_annotations of {UNLOCK}",
            f"{_some(useless)} has no effect on polls",
            "remove it: a chord that is counted is looked at late and slowly anyway"
            if is_counted(app)
            else "use chord_unlock_retry_backoff, chord_unlock_retry_backoff_max and "
            "chord_unlock_retry_jitter",
        )


def _endless_keys(app: Celery) -> Iterator[Finding]:
    if not _in_seconds(app.conf.get("result_expires")):
        yield Finding(
            "result_expires",
            "results never expire, and neither does what a failed chord leaves in Redis",
            "set it to more than the longest chord takes",
        )


def _short_lived_keys(app: Celery) -> Iterator[Finding]:
    expires = _in_seconds(app.conf.get("result_expires"))
    if expires and _chord_keys_expire(app, expires) < SHORT_EXPIRY:
        yield _too_short(expires)


def _short_lived_results(app: Celery) -> Iterator[Finding]:
    """Yield what expires before a chord ends, where the chord is made of stored results."""
    expires = _in_seconds(app.conf.get("result_expires"))
    can = backends.capabilities_of(app)
    if not expires or REDIS in backends.names_of(app) or not can.takes_chords:
        return
    if stores.has_store(app):
        return  # it is made of what the ledger keeps
    timeout = _in_seconds(app.conf.get("chord_timeout")) if is_patched(app) else None
    if timeout and timeout > expires:
        yield Finding(
            "result_expires",
            f"results live for {expires:g} s, less than chord_timeout = {timeout:g}: when a chord "
            "is settled, the results of its members are gone",
            "make result_expires longer than chord_timeout",
        )
    elif expires < SHORT_EXPIRY:
        yield _too_short(expires)


def _too_short(expires: float) -> Finding:
    return Finding(
        "result_expires",
        f"results live for {expires:g} s: the body of a chord that takes longer never runs",
        "set it to more than the longest chord takes, an hour at least",
    )


def _chord_keys_expire(app: Celery, expires: float) -> float:
    """Return the seconds that a chord's counter lives: Celery 5.7 has a setting for Redis."""
    own = app.conf.get("result_chord_expires")
    if own is None or celery_version() < celery_5_7:
        return expires
    return _in_seconds(own) or float("inf")


def _ignored_results(app: Celery) -> Iterator[Finding]:
    if not backends.capabilities_of(app).polls or stores.has_store(app):
        return
    danger = "as a member of a header it stores nothing, and the chord is polled " + (
        "until chord_timeout" if polls_are_ours(app) else "for ever"
    )
    remedy = "set ignore_result=False on each task that is a member of a chord's header"
    if is_patched(app):
        fix = registry["ignored_results"]
        remedy += f", or have it kept for its chord ({fix.setting} = True)"
    if app.conf.task_ignore_result:
        yield Finding("task_ignore_result", f"True: {danger}", remedy)
        return
    names = sorted(
        name
        for name, task in app.tasks.items()
        if task.ignore_result and not name.startswith(("celery.", "chordguard."))
    )
    if names:
        yield Finding("ignore_result", f"set on {_some(names)}: {danger}", remedy)


def _limited_backend(app: Celery) -> Iterator[Finding]:
    lacks = lacking(app)
    if lacks and not backends.capabilities_of(app).keeps_ledger:
        yield Finding("result_backend", *lacks)


def _missing_django_app(app: Celery) -> Iterator[Finding]:
    reason = backends.why_without_ledger(app) if is_patched(app) else None
    if reason:
        remedy = f'add "{backends.DJANGO_APP}" to INSTALLED_APPS and run `manage.py migrate`'
        yield Finding("INSTALLED_APPS", reason, remedy)


def _replaced_hooks(app: Celery) -> Iterator[Finding]:
    for hook in hooks.found(app) if is_patched(app) else ():
        yield Finding(hook.name, f"it is not Celery's own: {hook.effect}", hook.instead)


def _eager_mode(app: Celery) -> Iterator[Finding]:
    if app.conf.task_always_eager:
        yield Finding(
            "task_always_eager",
            "tasks run in the process that calls them; no chord reaches a worker",
            "set it in tests only",
        )


def _short_join(app: Celery) -> Iterator[Finding]:
    backend = backend_of(app)
    if is_counted(app) or not backends.takes_chords(backend) or backend.supports_native_join:
        return  # all results are read at once, or none
    timeout = _in_seconds(app.conf.get("result_chord_join_timeout"))
    if timeout and timeout < JOIN_TIMEOUT:
        yield Finding(
            "result_chord_join_timeout",
            f"a good chord fails when reading its results takes over {timeout:g} s",
            f"use {JOIN_TIMEOUT:g} s (Celery's default) or more",
        )


#: What is looked at in the configuration, what weighs most first.
LOOKS = (
    Look(_limited_backend),
    Look(_missing_django_app),
    Look(_replaced_hooks),
    Look(_eager_mode),
    Look(_short_lived_keys, "B8"),
    Look(_short_lived_results),
    Look(_endless_keys, "D1"),
    Look(_short_join, "C7"),
)
#: What is looked at in the tasks.
LOOKS_AT_TASKS = (Look(_short_bound), Look(_ignored_results, "B9"), Look(_useless_annotations))


def _in_seconds(value: Any) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, (int, float)) else None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
