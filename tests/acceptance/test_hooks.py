"""What an application puts in place of functions of Celery keeps its effect."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group

from chordguard import install_patches, strict, tolerant
from chordguard.monitoring.doctor import examine
from chordguard.upstream import hooks
from tests.app_factory import make_app
from tests.harness import wait_until

RECIPE = {"imports": ["tests.hooked.recipe"]}
POLLER = {"imports": ["tests.hooked.poller"], "chord_unlock_first_delay": 0.1}

#: Without the ledger Celery itself counts, and ours joins.
LEDGERS = pytest.mark.parametrize("ledger", [{}, {"chord_ledger": False}], ids=["", "no ledger"])


@pytest.fixture
def backend_of(servers):
    """Return the setting for a backend of `tests.hooked.backends`."""

    def backend_of(name):
        return {"result_backend": f"tests.hooked.backends:{name}+{servers.get('redis').url}"}

    return backend_of


@LEDGERS
class TestUnpacking:
    def test_recipe_is_honoured(self, clusters, ledger):
        cluster = clusters("redis", settings={**RECIPE, **ledger})
        t = cluster.tasks

        canvas = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s()))

        assert [1, "by the recipe: boom"] == cluster.run(canvas)

    def test_recipe_is_honoured_for_nested_members(self, clusters, ledger):
        cluster = clusters("redis", settings={**RECIPE, **ledger})
        t = cluster.tasks
        nested = chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s()))

        canvas = chord([nested, t.echo.s(3)], t.collect.s())

        assert [[2, "by the recipe: boom"], 3] == cluster.run(canvas)

    def test_policy_of_a_tolerant_chord_is_stronger(self, clusters, ledger):
        cluster = clusters("redis", settings={**RECIPE, **ledger})
        t = cluster.tasks

        canvas = tolerant(chord([t.echo.s(1), t.fail.s()], t.collect.s()))

        assert [1, "ValueError: boom"] == cluster.run(canvas)

    def test_subclass_is_honoured(self, clusters, backend_of, ledger):
        cluster = clusters("redis", settings={**backend_of("Unpacking"), **ledger})
        t = cluster.tasks

        assert [1, "by the subclass"] == cluster.run(
            chord([t.echo.s(1), t.fail.s()], t.collect.s())
        )


def test_backend_that_adds_to_the_counting_has_a_ledger(clusters, backend_of):
    cluster = clusters("redis", settings=backend_of("Watching"))
    t = cluster.tasks
    result = tolerant(chord([t.echo.s(1), t.fail.s()], t.collect.s())).apply_async()

    assert [1, "ValueError: boom"] == cluster.run(result)
    backend = cluster.app.backend
    assert b"2" == backend.client.get(backend.get_key_for_group(result.parent.id, ".watched"))
    assert [] == hooks.found(cluster.app)


def test_backend_that_counts_itself_is_left_alone(clusters, backend_of, record):
    settings = {**backend_of("Counting"), "chord_watchdog_interval": 0.2}
    cluster = clusters("redis", settings=settings)
    t = cluster.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s(record=record.path)).apply_async()

    backend = cluster.app.backend
    assert not backend.client.exists(backend.get_key_for_group(result.parent.id, ".chordguard"))
    assert ["counted by the app", 2] == cluster.run(result)
    wait_until(cluster.is_idle, what="idle worker")
    assert 1 == record.count("body")


@pytest.mark.parametrize("backend", ["sqlite"])
def test_poller_of_the_application_is_left_alone(clusters, backend, record):
    cluster = clusters(backend, settings=POLLER)
    t = cluster.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s(record=record.path)).apply_async()

    assert ["polled by the app", 1, 2] == cluster.run(result)
    wait_until(cluster.is_idle, what="idle worker")
    assert 1 == record.count("body")


def test_own_way_to_fail_a_chord_is_honoured(clusters, servers):
    with clusters.alone("sqlite") as plain:
        url = plain.stack.result_url.removeprefix("db+")
        settings = {"result_backend": f"tests.hooked.backends:Failing+{url}"}
        cluster = clusters("sqlite", settings=settings)
        t = cluster.tasks

        outcome = cluster.outcome(chord([t.echo.s(1), t.fail.s()], t.collect.s()))

    assert "by the subclass" in str(outcome.value)


@pytest.mark.parametrize(
    ("backend", "name", "instead"),
    [
        ("Unpacking", "Unpacking._unpack_chord_result", "chord_propagate_errors = False"),
        ("Counting", "Counting.on_chord_part_return", "call the method of the base class"),
    ],
)
def test_report_and_doctor_name_it(backend_of, backend, name, instead):
    config: dict[str, Any] = {
        "name": "hooked",
        "tasks": "tests.tasks",
        "settings": {**backend_of(backend)},
    }
    config["settings"]["broker_url"] = "memory://"
    app = make_app(config, patched=True)
    try:
        report = str(install_patches(app))
        findings = [str(finding) for finding in examine(app)]
    finally:
        app.close()

    assert name in report
    assert any(name in finding and instead in finding for finding in findings)


def test_backend_of_another_kind_is_not_looked_into():
    """It has ways of its own to count chords, which nobody replaced."""
    settings = {"result_backend": "tests.hooked.other:Other+x://", "broker_url": "memory://"}
    app = make_app({"name": "other", "tasks": "tests.tasks", "settings": settings}, patched=True)
    try:
        assert [] == hooks.found(app)
    finally:
        app.close()
