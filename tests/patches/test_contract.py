"""What holds for every patch of the registry."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
import wrapt
from celery import Celery

from chordguard import (
    SettingError,
    UntestedCeleryWarning,
    install_patches,
    patch_report,
    patches,
    uninstall_patches,
)
from chordguard.engine import versions
from chordguard.engine.patch import Defect, Patch, is_patched, patched_apps
from chordguard.engine.versions import celery_5_7, celery_version, lies_in
from chordguard.engine.wrapping import _Guarded
from chordguard.patches import by_name, registry
from tests.django import project

ROOT = Path(__file__).parent.parent.parent
MISSING = object()

#: The patches whose driver is installed here.
HERE = [patch for patch in registry.values() if not patch.driver_is_absent()]

if any(patch.driver == "django_celery_results" for patch in HERE):
    # Its models want settings.
    project.use_any()

# What is not imported is not patched yet.
for patch in HERE:
    for target in patch.targets_here():
        importlib.import_module(target.module)

every_patch = pytest.mark.parametrize("patch", list(registry.values()), ids=lambda p: p.name)
every_patch_here = pytest.mark.parametrize("patch", HERE, ids=lambda p: p.name)


@pytest.fixture
def alone():
    """Take the patches out of all apps of this process, which other tests share, for a while."""
    others = list(patched_apps())
    # Those of apps that were collected stand until somebody takes theirs out.
    last = Celery("last", set_as_current=False)
    install_patches(last)
    for app in (*others, last):
        uninstall_patches(app)
    last.close()
    yield
    for app in others:
        install_patches(app)


@pytest.fixture
def make_app(alone):
    apps = []

    def make_app(**settings):
        app = Celery("contract", broker="memory://", backend="db+sqlite://", set_as_current=False)
        opt_in: dict[str, Any] = {
            patch.setting: True for patch in registry.values() if patch.is_opt_in
        }
        opt_in["chord_ledger_url"] = "sqlite:////tmp/chordguard-never-opened.sqlite"
        app.conf.update({**opt_in, **settings})
        apps.append(app)
        return app

    yield make_app
    for app in apps:
        uninstall_patches(app)
        app.close()


@pytest.fixture
def declare():
    """Return a function that declares a patch for the time of the test."""
    names = []

    def declare(name, **options):
        patch = registry[name] = Patch(name, Defect("X1", "none"), **options)
        names.append(name)
        return patch

    yield declare
    for name in names:
        del registry[name]


def place(target):
    """Return the class that has the function of `target`, and the function's name there."""
    owner, attribute, _ = wrapt.resolve_path(target.module, target.path)
    return owner, attribute


def standing(patch):
    """Return what stands at the targets of `patch`, as the owners themselves hold it."""
    places = [place(target) for target in patch.targets_here()]
    return [vars(owner).get(attribute, MISSING) for owner, attribute in places]


def is_same(before, after):
    return [id(function) for function in before] == [id(function) for function in after]


def layer(function, patch):
    """Return the wrapper of `patch` around `function`; another one may lie around it."""
    while function._self_patch is not patch:
        function = function.__wrapped__
    return function


def layers(function, patch):
    """Return how many times `patch` lies around `function`."""
    count = 0
    while isinstance(function, wrapt.FunctionWrapper):
        # A wrapper that is not ours would answer for the one that it lies around.
        count += isinstance(function, _Guarded) and function._self_patch is patch
        function = function.__wrapped__
    return count


def layers_of(patch, app):
    functions = standing(patch)
    if patch.is_needed():
        functions += [vars(app.tasks[t.task]).get(t.method) for t in patch.task_targets]
    return [layers(function, patch) for function in functions]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert 0 == done.returncode, done.stderr
    return done.stdout


@every_patch
class TestNames:
    def test_module_test_and_switch_share_the_name(self, patch):
        (module,) = (ROOT / "src/chordguard/patches").glob(f"*/{patch.name}.py")
        room = module.parent.name

        assert sys.modules[f"chordguard.patches.{room}.{patch.name}"] in patches.ORDER
        assert (ROOT / "tests/patches" / room / f"test_{patch.name}.py").exists()
        assert f"chord_fix_{patch.name}" == patch.setting
        assert patch is sys.modules[f"chordguard.patches.{room}.{patch.name}"].patch

    def test_patch_says_what_it_is_for(self, patch):
        assert patch.defects
        assert all(defect.symptom for defect in patch.defects)
        assert patch.targets or patch.task_targets


@every_patch_here
class TestLife:
    def test_report_says_what_became_of_it(self, make_app, patch):
        app = make_app()
        app.finalize()

        outcome = install_patches(app)[patch.name]

        assert ("applied" if patch.is_needed() else "skipped") == outcome.status
        assert patch.is_needed() or "not needed" in outcome.reason
        assert patch.ids == outcome.defects

    def test_installed_twice_is_installed_once(self, make_app, patch):
        app = make_app()

        for _ in range(2):
            install_patches(app)
            app.finalize()
            install_patches(app)
            install_patches(make_app())

        assert {1} >= set(layers_of(patch, app))

    def test_uninstalled_leaves_what_was_there(self, make_app, patch):
        app = make_app()
        app.finalize()
        before = standing(patch)

        install_patches(app)
        uninstall_patches(app)

        assert is_same(before, standing(patch))
        assert {0} >= set(layers_of(patch, app))
        assert "skipped" == patch_report(app)[patch.name].status

    def test_stays_while_another_app_has_it(self, make_app, patch):
        app, other = make_app(), make_app()
        install_patches(app)
        install_patches(other)
        other.finalize()

        uninstall_patches(app)

        assert {1} >= set(layers_of(patch, other))
        assert patch.is_active(other)
        assert not patch.is_active(app)

    @pytest.mark.parametrize("is_off", [False, True], ids=["not installed", "switched off"])
    def test_calls_straight_through(self, make_app, patch, is_off):
        install_patches(make_app())
        app = make_app()
        if is_off:
            app.conf[patch.setting] = False
            app.finalize()
            reason = install_patches(app)[patch.name].reason
            how = f"off unless {patch.setting} = True"
            if not patch.is_opt_in:
                how = f"switched off by {patch.setting}"
            assert not patch.is_needed() or how == reason

        # The object that a method is called on; some wrappers ask for the parent of a result.
        call_for = SimpleNamespace(app=app, parent=object())
        for function in standing(patch):
            wrapper = layer(function, patch)
            calls = []

            def wrapped(*args, calls=calls, **kwargs):
                calls.append((args, kwargs))
                return "as it was"

            assert "as it was" == wrapper._self_wrapper(wrapped, call_for, (call_for,), {"x": 2})
            assert [((call_for,), {"x": 2})] == calls


def versions_without(patch):
    """Yield versions that lack the defect, and how the report says why."""
    if patch.since:
        yield (5, 0), "it came with Celery "
    if patch.until:
        yield patch.until, "mended in Celery "


@pytest.mark.parametrize(
    ("patch", "version", "why"),
    [
        pytest.param(patch, *lacks, id=f"{patch.name}-{'.'.join(map(str, lacks[0]))}")
        for patch in HERE
        for lacks in versions_without(patch)
    ],
)
def test_version_without_the_defect_is_not_touched(make_app, patch, version, why, monkeypatch):
    monkeypatch.setattr(versions, "celery_version", lambda: version)
    app = make_app()
    app.finalize()

    outcome = install_patches(app)[patch.name]

    monkeypatch.undo()
    assert "skipped" == outcome.status
    assert outcome.reason.startswith(f"not needed: {why}")
    # Another patch may have wrapped the same function just now.
    assert not any(layers(function, patch) for function in standing(patch))


class TestInstalling:
    @pytest.mark.parametrize("order", ["before", "configured", "finalized"])
    def test_may_come_at_any_time(self, make_app, order):
        app = make_app()
        if order == "before":
            install_patches(app)
        app.config_from_object({"chord_propagate_errors": False})
        if order == "configured":
            assert app.conf.chord_propagate_errors is False
            install_patches(app)
        app.finalize()
        if order == "finalized":
            install_patches(app)

        assert {"applied", "skipped"} >= {outcome.status for outcome in patch_report(app)}
        assert 1 == layers_of(registry["bounded_unlock"], app)[-1]

    def test_nothing_waits_but_what_needs_a_finalized_app(self, make_app):
        app = make_app()

        waiting = {o.patch for o in install_patches(app) if o.status == "waiting"}

        needed = (patch for patch in registry.values() if patch.is_needed())
        assert {patch.name for patch in needed if patch.task_targets} == waiting
        app.finalize()
        assert set() == {o.patch for o in patch_report(app) if o.status == "waiting"}

    def test_current_app_stands_for_the_app_behind_it(self, make_app):
        app = make_app()
        app.set_current()

        install_patches(celery.current_app)

        assert is_patched(app)
        uninstall_patches(celery.current_app)
        assert not is_patched(app)

    @pytest.mark.parametrize("wrong", [None, "app", Celery, object()])
    @pytest.mark.parametrize("function", [install_patches, uninstall_patches, patch_report])
    def test_what_is_no_app_is_refused(self, function, wrong):
        with pytest.raises(TypeError, match="expected a Celery app, got"):
            function(wrong)

    def test_settings_of_one_app_are_not_those_of_another(self, make_app):
        app, other = make_app(chord_fix_header_order=False), make_app()
        install_patches(app)
        install_patches(other)

        assert not registry["header_order"].is_active(app)
        assert registry["header_order"].is_active(other)

    def test_app_that_left_may_come_back(self, make_app):
        app = make_app()
        app.finalize()
        for _ in range(2):
            install_patches(app)
            assert "applied" == patch_report(app)["header_order"].status
            uninstall_patches(app)
            assert "not installed" in patch_report(app)["header_order"].reason

    def test_refused_setting_leaves_celery_as_it_was(self, make_app):
        app = make_app(chord_max_errors=-1)
        app.finalize()
        before = standing(registry["header_order"])

        with pytest.raises(SettingError):
            install_patches(app)

        assert not is_patched(app)
        assert before[0] is standing(registry["header_order"])[0]

    @pytest.mark.skipif(celery_version() < celery_5_7, reason="it warns from 5.7 on")
    def test_warning_about_the_tasks_of_the_app_names_who_finalizes_it(self, make_app):
        app = make_app()
        install_patches(app)
        for _ in range(2):

            @app.task(name="same", shared=False)
            def do():
                pass

        with pytest.warns(Warning, match="Task name 'same' is already registered") as caught:
            app.finalize()

        assert [__file__] == [each.filename for each in caught]

    def test_wrapper_that_somebody_put_around_ours_stays(self, make_app):
        app = make_app()
        install_patches(app)
        owner, attribute = place(registry["header_order"].targets[0])
        ours = vars(owner)[attribute]
        theirs = wrapt.FunctionWrapper(
            ours, lambda wrapped, _, args, kwargs: wrapped(*args, **kwargs)
        )
        setattr(owner, attribute, theirs)
        try:
            uninstall_patches(app)
            assert theirs is vars(owner)[attribute]
            install_patches(app)
            assert 1 == layers(vars(owner)[attribute], registry["header_order"])
        finally:
            setattr(owner, attribute, ours)

    def test_version_that_was_never_tested_is_named(self, make_app, monkeypatch):
        monkeypatch.setattr(celery, "__version__", "5.99.0")

        with pytest.warns(UntestedCeleryWarning, match=r"5\.99\.0") as caught:
            report = install_patches(make_app())

        assert __file__ == caught[0].filename
        assert str(report).startswith("chordguard on Celery 5.99.0")

    @pytest.mark.parametrize(
        ("backend", "expected"),
        [
            ("redis://nowhere", "chords are counted in the ledger"),
            ("cache+memory://", "CacheBackend are counted by Celery alone, without a ledger"),
            ("file:///nowhere", "FilesystemBackend are polled by celery.chord_unlock, without a"),
            ("rpc://", "Celery refuses chords on the result backend celery.backends.rpc."),
            (None, "the app has no result backend: Celery refuses chords; set chord_ledger_url"),
            ("nonsense://", "the result backend cannot be loaded"),
        ],
    )
    def test_what_holds_for_chords_is_said(self, backend, expected):
        app = Celery("contract", broker="memory://", backend=backend, set_as_current=False)
        app.finalize()
        try:
            assert expected in str(install_patches(app))
        finally:
            uninstall_patches(app)


class TestTargets:
    @pytest.mark.parametrize(
        ("version", "is_needed"),
        [((5, 2, 1), False), ((5, 3), True), ((6, 3, 0), True), ((6, 4), False), ((), False)],
    )
    def test_driver_without_the_defect_is_not_touched(
        self, make_app, declare, version, is_needed, monkeypatch
    ):
        patch = declare("x", driver="redis", driver_versions=((5, 3), (6, 4)))
        monkeypatch.setattr(versions, "driver_version", lambda _: version)
        app = make_app()

        outcome = install_patches(app)["x"]

        assert is_needed == patch.is_needed()
        assert ("applied" if is_needed else "skipped") == outcome.status
        installed = f"redis {importlib.metadata.version('redis')}"
        assert is_needed or f"not needed: it does not show with {installed}" == outcome.reason

    def test_missing_target_is_said_aloud_and_nothing_else_breaks(self, make_app, declare, caplog):
        patch = declare("of_another_celery")
        patch.wraps("celery.canvas", "group.no_such_function")(None)

        report = install_patches(make_app())

        assert "failed" == report["of_another_celery"].status
        assert "celery.canvas.group.no_such_function is not there" in str(report)
        assert "the fix of_another_celery does not act" in caplog.text
        assert "applied" == report["header_order"].status

    def test_inherited_function_is_given_back(self, make_app, declare):
        class Base:
            def method(self):
                return "inherited"

        class Derived(Base):
            app = None

        module = sys.modules[__name__]
        setattr(module, "Derived", Derived)  # noqa: B010
        patch = declare("of_a_subclass")
        patch.wraps(__name__, "Derived.method")(lambda wrapped, *_: f"wrapped {wrapped()}")
        app = make_app()
        instance = Derived()
        instance.app = app

        install_patches(app)
        assert "wrapped inherited" == instance.method()
        assert "inherited" == Base.method(instance)
        uninstall_patches(app)

        assert "method" not in vars(Derived)
        assert "inherited" == instance.method()
        del module.Derived

    def test_two_patches_cannot_share_a_name(self):
        with pytest.raises(ValueError, match="two patches are called 'header_order'"):
            by_name([*registry.values(), Patch("header_order")])


HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] == {driver!r}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding

from celery import Celery
from chordguard import install_patches, patch_report
app = Celery("app", broker="memory://")
install_patches(app)
app.finalize()
for outcome in patch_report(app):
    print(outcome.patch, outcome.status, outcome.reason)
"""


@pytest.mark.parametrize("driver", ["redis", "sqlalchemy"])
def test_absent_driver_is_no_error(driver):
    lines = dict(line.split(" ", 1) for line in run(HIDE.format(driver=driver)).splitlines())

    here = celery_version()
    concerned = {
        patch.name
        for patch in registry.values()
        if patch.driver == driver and lies_in(here, patch.since, patch.until)
    }
    assert set(registry) == set(lines)
    assert {f"skipped the package {driver} is not installed"} == {lines[n] for n in concerned}
    others = {lines[name].partition(" ")[0] for name in set(registry) - concerned}
    assert {"applied", "waiting", "skipped"} >= others


LATE = """
import sys
from celery import Celery
from chordguard import install_patches, patch_report, uninstall_patches
app = Celery("app", broker="memory://")
install_patches(app)
assert "celery.backends.redis" not in sys.modules
print(patch_report(app)["tolerant_parts"])
if {leaves}:
    uninstall_patches(app)
from celery.backends.redis import RedisBackend
print(hasattr(vars(RedisBackend)["on_chord_part_return"], "_self_patch"))
install_patches(app)
print(patch_report(app)["tolerant_parts"])
uninstall_patches(app)
print(hasattr(vars(RedisBackend)["on_chord_part_return"], "_self_patch"))
print("restore_group" in vars(RedisBackend))
"""


@pytest.mark.parametrize("leaves", [False, True])
def test_module_that_is_imported_later_is_patched_then(leaves):
    waiting, is_wrapped, applied, still_wrapped, has_copy = run(
        LATE.format(leaves=leaves)
    ).splitlines()

    assert "tolerant_parts: waiting" in waiting
    assert "celery.backends.redis" in waiting
    assert str(not leaves) == is_wrapped
    assert "tolerant_parts: applied" == applied
    assert ("False", "False") == (still_wrapped, has_copy)
