from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery, chain, chord, group

from chordguard import install_patches, strict, tolerant, uninstall_patches
from tests import tasks


@pytest.fixture
def make(fix):
    apps = []

    def make(patched=True, **settings):
        app = Celery("eager", broker="memory://", backend="db+sqlite://")
        app.conf.update(task_always_eager=True, **settings)
        tasks.register(app)
        if patched:
            install_patches(app)
        app.finalize()
        app.set_current()
        apps.append(app)
        return SimpleNamespace(app=app, tasks=tasks.named(app))

    yield make
    for app in apps:
        uninstall_patches(app)
        app.close()


def strict_chord(t, record=None):
    body = t.collect.s().on_error(t.errback_new.s(record=record.path if record else None))
    return chord([t.echo.s(1), t.fail.s()], body)


@pytest.mark.parametrize(
    "options", [{"patched": False}, {"chord_fix_eager_chords": False}], ids=["alone", "off"]
)
def test_failed_member_raises_out_of_apply_async(make, options):
    t = make(**options).tasks

    with pytest.raises(ValueError, match="boom"):
        strict_chord(t).apply_async()


def test_strict_chord_returns_a_failed_result_and_calls_its_errback_once(make, record):
    t = make().tasks

    result = strict_chord(t, record).apply_async()

    assert "FAILURE" == result.state
    assert "ValueError: boom" in str(result.result)
    assert 1 == record.count("errback_new")


def test_strict_chord_raises_where_eager_tasks_raise(make):
    t = make(task_eager_propagates=True).tasks

    with pytest.raises(ValueError, match="boom"):
        strict_chord(t).apply_async()


def test_tolerant_chord_runs_its_body(make, record):
    t = make(chord_propagate_errors=False).tasks

    assert [1, "ValueError: boom"] == strict_chord(t, record).apply_async().get()
    assert 0 == record.count("errback_new")


@pytest.mark.parametrize("propagates", [True, False])
def test_choice_per_chord_is_stronger_than_the_configuration(make, propagates):
    t = make(chord_propagate_errors=propagates).tasks

    assert [1, "ValueError: boom"] == tolerant(strict_chord(t)).apply_async().get()
    assert "FAILURE" == strict(strict_chord(t)).apply_async().state


def test_nested_members_keep_their_nesting(make):
    t = make(chord_propagate_errors=False).tasks
    ends_in_group = chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s()))
    fails_first = chain(t.fail.s(), group(t.add.s(1), t.add.s(2)))

    value = chord([ends_in_group, t.echo.s(5), fails_first], t.collect.s()).apply_async().get()

    assert [2, "ValueError: boom"] == value[0]
    assert 5 == value[1]
    assert ["ValueError: boom"] * 2 == value[2]


def test_chord_in_the_header_counts_as_one_member(make):
    t = make(chord_propagate_errors=False).tasks
    inner = chord([t.echo.s(1), t.fail.s()], t.collect.s())

    value = chord([inner, t.echo.s(2)], t.collect.s()).apply_async().get()

    assert [[1, "ValueError: boom"], 2] == value


def test_chord_without_failures_stays_as_it_was(make):
    t = make().tasks

    assert 3 == chord([t.echo.s(1), t.echo.s(2)], t.tsum.s()).apply_async().get()
    assert [] == chord([], t.collect.s()).apply_async().get()


def test_too_many_failures_fail_the_chord(make):
    t = make(chord_propagate_errors=False, chord_max_errors=1).tasks
    header = [t.fail.s("one"), t.fail.s("two"), t.echo.s(3)]

    result = chord(header, t.collect.s()).apply_async()

    assert "FAILURE" == result.state
    assert "one" in str(result.result)
    assert "two" in str(result.result)
