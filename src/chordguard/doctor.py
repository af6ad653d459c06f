"""Examine an app: what became of the patches, and what in its settings endangers chords."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from . import _patch, backends, counting, hooks, masking, polling, settings
from . import patches as _all_patches  # noqa: F401 - fills the registry
from .errors import CannotTell, SettingError
from .hooks import UNLOCK

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "CannotLoad",
    "Finding",
    "ask_backend",
    "defects",
    "examine",
    "load_app",
    "prepare_app",
    "short_polling",
)

#: Seconds of polling below which a bound on the polls is called too low.
SHORT_POLLING = 60
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
CREATE = (
    "start a worker whose database user may create them, or have the output of "
    "`python -m chordguard ddl` executed"
)


class CannotLoad(Exception):
    """The app that was asked for cannot be loaded; the message says why."""


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


def load_app(name: str) -> Celery:
    """Return the app that ``celery -A name`` would use, with its tasks imported.

    Nothing is started and no table is created.

    Raises:
        CannotLoad: There is no such app, or importing it raised.
    """
    from celery import Celery
    from celery.app.utils import find_app

    try:
        app = find_app(name)
    except Exception as exc:
        raise CannotLoad(f"cannot load the app {name!r}: {masking.words_of(exc)}") from exc
    if not isinstance(app, Celery):
        raise CannotLoad(f"cannot load the app {name!r}: expected a Celery app, found {app!r}")
    return prepare_app(app, name)


def prepare_app(app: Celery, name: str) -> Celery:
    """Return `app`, which was asked for as `name`, with its tasks imported.

    Nothing is started and no table is created.

    Raises:
        CannotLoad: Importing its tasks raised.
    """
    try:
        app.loader.import_default_modules()
        # From 5.6 on a database backend would create its tables when it is looked at.
        app.conf.database_create_tables_at_setup = False
        with suppress(SettingError):  # `examine` tells it
            _finalize(app)
    except Exception as exc:
        raise CannotLoad(
            f"cannot load the tasks of the app {name!r}: {masking.words_of(exc)}"
        ) from exc
    return app


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
    if backends.why_unsupported(app) or not settings.get(app, "chord_ledger"):
        return []
    backend = backends.bounded(app, seconds)
    try:
        ledger = counting.ledger_of_kind(backend)
        if not ledger.is_there():
            return [Finding("the ledger", NO_TABLES, CREATE)]
        refused = ledger.refused()
    except backends.errors(backend) as exc:
        line = next(iter(str(getattr(exc, "orig", None) or exc).splitlines()), "")
        where = backends.address(app)
        raise CannotTell(f"the result backend {where} cannot be read: {line}") from exc
    finally:
        backends.disconnect(backend)
    return [
        Finding(what, f"the result backend refuses it ({why}): {LEFT_TO_CELERY}", GRANT)
        for what, why in refused.items()
    ]


def defects(app: Celery) -> list[str]:
    """Return a line for each defect of the installed Celery: which patch closes it, or why not.

    The ids are those of the README's table of patches. What the result backend of `app` does not
    have is left out, and what Celery documents: a patch that is off unless it is asked for.
    """
    names, lines = backends.names_of(_backend(app)), []
    for outcome in _patch.outcomes(app):
        patch = _patch.registry[outcome.patch]
        if patch.is_opt_in and not patch.is_switched_on(app):
            continue
        why = _why_open(app, outcome)
        by = f"closed by {patch.name}" if why is None else f"open, {why}"
        lines += [f"{id_}: {by} - {patch.defects[id_]}" for id_ in patch.defects_on(names)]
    return sorted(lines, key=lambda line: (line[0], int(re.findall(r"\d+", line)[0]), line))


def is_open(app: Celery, defect: str) -> bool:
    """Tell whether the installed Celery has a defect that no patch closes for `app`.

    Of a result backend that is not supported, it is not known which defects it has: there all are
    open that no patch closes on every backend.
    """
    names = backends.names_of(_backend(app))
    concerned = {
        patch.name
        for patch in _patch.registry.values()
        if defect in (patch.defects_on(names) if names else patch.defects_here())
    }
    return bool(concerned) and all(
        _why_open(app, outcome) or not _patch.registry[outcome.patch].is_for(names)
        for outcome in _patch.outcomes(app)
        if outcome.patch in concerned
    )


def _why_open(app: Celery, outcome: _patch.Outcome) -> str | None:
    """Return why a patch, of which `outcome` tells, closes nothing for `app`; None: it does.

    One that waits is applied before the module that it mends is first used.
    """
    if outcome.status not in ("applied", "waiting"):
        return str(outcome)
    if _patch.registry[outcome.patch].needs_ledger and not _is_counted(app):
        return f"{outcome.patch}: it needs the ledger, which this app does not keep"
    return None


def short_polling(app: Celery, task: Any) -> str | None:
    """Return a warning when the chords of `app` are looked at for less than a minute in all.

    Each look at a chord is a retry of `celery.chord_unlock`, whose bound comes from
    ``task_annotations`` or, with the patches, from ``chord_unlock_max_retries``. A chord that is
    counted is looked at late and slowly, by the safety net alone.

    Arguments:
        app: The app, configured.
        task: Its task ``celery.chord_unlock``.

    Returns:
        One line, or None where that lasts, or where this backend is not polled.
    """
    bound, source = _bound_of_polls(app, task)
    if bound is None or not backends.is_polled(_backend(app)):
        return None
    is_counted = _is_counted(app)
    looked_at, look = ("looked at", "look") if is_counted else ("polled", "poll")
    seconds = counting.first_delay(app, None) if is_counted else 0.0
    for retries in range(bound):
        if seconds >= SHORT_POLLING:
            break
        seconds += _delay_before(app, task, retries)
    if seconds >= SHORT_POLLING:
        return None
    return (
        f"{source} = {bound}: a chord is {looked_at} for about {seconds:.3g} s only, since each "
        f"{look} is a retry of {UNLOCK}; one whose header takes longer {_lost_how(app)}"
    )


def _missing_patches(app: Celery) -> Iterator[Finding]:
    import celery

    if not _patch.is_patched(app):
        yield Finding(
            "install_patches",
            "this app has not called it, so its chords are those of Celery alone",
            "call chordguard.install_patches(app) in the module that creates the app, so that "
            "every process that starts chords and every worker does",
        )
    else:
        for outcome in _patch.outcomes(app):
            if outcome.status == "failed":
                yield Finding(
                    f"the fix {outcome.patch}",
                    f"it does not act: {outcome.reason}",
                    "use a tested Celery, or look for a newer chordguard",
                )
    if celery.__version__ not in _patch.TESTED_VERSIONS:
        yield Finding(
            f"Celery {celery.__version__}",
            "chordguard was not tested with it; the patches whose targets look as expected act",
            f"use one of {', '.join(_patch.TESTED_VERSIONS)}, or look for a newer chordguard",
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
        settings.check(app, tuple(_patch.registry))  # stops at the first
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
    if ignored and not _patch.is_patched(app):
        yield Finding(
            _some(ignored),
            "set, but Celery alone does not know such settings and ignores them",
            "call chordguard.install_patches(app), or do not rely on them",
        )


def _is_whole(app: Celery) -> bool:
    """Finalize the app; tell whether its settings let Celery make all its tasks."""
    try:
        _finalize(app)
        if _patch.is_patched(app):
            settings.check(app, tuple(_patch.registry))
    except SettingError:
        return False
    return True


def _finalize(app: Celery) -> None:
    """Finalize the app.

    By way of its tasks, where that does it: a warning of Celery about one of them names the first
    caller outside of Celery, which shall not be this module.
    """
    if app.autofinalize:
        _ = app.tasks
    else:
        app.finalize()


def _known_names() -> tuple[str, ...]:
    return (*settings.SETTINGS, *(settings.FIX_PREFIX + fix for fix in _patch.registry))


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
            defect="C2" if _stays_pending(app) else None,
        )


def _useless_annotations(app: Celery) -> Iterator[Finding]:
    useless = sorted(
        key
        for _, attributes in _annotations_of(app)
        for key in attributes
        if key.startswith("retry_backoff") or key == "retry_jitter"
    )
    if useless and backends.is_polled(_backend(app)):
        yield Finding(
            f"task_annotations of {UNLOCK}",
            f"{_some(useless)} has no effect on polls",
            "remove it: a chord that is counted is looked at late and slowly anyway"
            if _is_counted(app)
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
    backend = _backend(app)
    if not expires or backends.is_redis(backend) or not backends.takes_chords(backend):
        return
    timeout = _in_seconds(app.conf.get("chord_timeout")) if _patch.is_patched(app) else None
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
    if own is None or _patch.celery_version() < _patch.celery_5_7:
        return expires
    return _in_seconds(own) or float("inf")


def _ignored_results(app: Celery) -> Iterator[Finding]:
    if not backends.is_database(_backend(app)):
        return
    danger = "as a member of a header it stores nothing, and the chord is polled " + (
        "until chord_timeout" if _polls_are_ours(app) else "for ever"
    )
    remedy = "set ignore_result=False on each task that is a member of a chord's header"
    if _patch.is_patched(app):
        fix = _patch.registry["ignored_results"]
        remedy += f", or have it kept for its chord ({fix.setting} = True)"
    if app.conf.task_ignore_result:
        yield Finding("task_ignore_result", f"True on a SQL backend: {danger}", remedy)
        return
    names = sorted(
        name
        for name, task in app.tasks.items()
        if task.ignore_result and not name.startswith(("celery.", "chordguard."))
    )
    if names:
        yield Finding("ignore_result", f"set on {_some(names)}, on a SQL backend: {danger}", remedy)


def _unusable_backend(app: Celery) -> Iterator[Finding]:
    reason = backends.why_unsupported(app)
    if reason:
        yield Finding(
            "result_backend", reason, "use Redis (redis://...) or a SQL database (db+...)"
        )


def _replaced_hooks(app: Celery) -> Iterator[Finding]:
    for hook in hooks.found(app) if _patch.is_patched(app) else ():
        yield Finding(hook.name, f"it is not Celery's own: {hook.effect}", hook.instead)


def _eager_mode(app: Celery) -> Iterator[Finding]:
    if app.conf.task_always_eager:
        yield Finding(
            "task_always_eager",
            "tasks run in the process that calls them; no chord reaches a worker",
            "set it in tests only",
        )


def _short_join(app: Celery) -> Iterator[Finding]:
    backend = _backend(app)
    if _is_counted(app) or not backends.takes_chords(backend) or backend.supports_native_join:
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
    Look(_unusable_backend),
    Look(_replaced_hooks),
    Look(_eager_mode),
    Look(_short_lived_keys, "B8"),
    Look(_short_lived_results),
    Look(_endless_keys, "D1"),
    Look(_short_join, "C7"),
)
#: What is looked at in the tasks.
LOOKS_AT_TASKS = (Look(_short_bound), Look(_ignored_results, "B9"), Look(_useless_annotations))


def _bound_of_polls(app: Celery, task: Any) -> tuple[int | None, str]:
    """Return after how many retries polling ends, and the setting that says so."""
    bounds = []
    if task.max_retries is not None:
        bounds.append((int(task.max_retries), _source_of_bound(app)))
    if _polls_are_ours(app):
        bound = settings.get(app, "chord_unlock_max_retries")
        if bound is not None:
            bounds.append((bound, "chord_unlock_max_retries"))
    return min(bounds, default=(None, ""))


def _source_of_bound(app: Celery) -> str:
    """Return the annotation that bounds the polls, the one that Celery applies last."""
    source = f"{UNLOCK}.max_retries"
    for key, attributes in _annotations_of(app):
        if "max_retries" in attributes:
            source = f"task_annotations[{key!r}]['max_retries']"
    return source


def _annotations_of(app: Celery) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the annotations of `celery.chord_unlock` with their keys; those for all tasks last."""
    task = app.tasks.get(UNLOCK)
    for annotation in app.annotations:
        if task is not None and hasattr(annotation, "annotate"):
            yield UNLOCK, annotation.annotate(task) or {}
    for annotation in app.annotations:
        if hasattr(annotation, "annotate_any"):
            yield "*", annotation.annotate_any() or {}


def _delay_before(app: Celery, task: Any, retries: int) -> float:
    if _is_counted(app) and app.conf.get("chord_unlock_retry_delay") is None:
        return counting.next_delay(app, retries)
    if _polls_are_ours(app):
        return polling.delay_before(app, task, retries)
    return float(task.default_retry_delay)


def _polls_are_ours(app: Celery) -> bool:
    """Tell whether our settings say when the polling of a chord ends."""
    is_bounded = _patch.registry["bounded_unlock"].is_active(app)
    return _is_counted(app) or (is_bounded and backends.is_database(_backend(app)))


def _lost_how(app: Celery) -> str:
    if _polls_are_ours(app):
        return "is settled without the members that are still running"
    return "stays PENDING for ever" if _stays_pending(app) else "fails while its header still runs"


def _stays_pending(app: Celery) -> bool:
    """Tell whether a chord stays PENDING when its polls have reached their bound."""
    return not _polls_are_ours(app) and is_open(app, "C2")


def _is_counted(app: Celery) -> bool:
    """Tell whether the chords of `app` are counted in its ledger.

    The server is not asked: on SQL the tables for it may be missing.
    """
    backend = _backend(app)
    if not (backends.is_supported(backend) and settings.get(app, "chord_ledger")):
        return False
    if backends.is_redis(backend):
        return _patch.registry["counted_parts"].is_active(app)
    from .ledger.database import DIALECTS

    is_known = not backends.names_of(backend).isdisjoint(DIALECTS)
    return is_known and _patch.registry["counted_chords"].is_active(app)


def _backend(app: Celery) -> Any:
    try:
        return app.backend
    except Exception:  # noqa: BLE001 - why_unsupported tells it
        return None


def _in_seconds(value: Any) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, (int, float)) else None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
