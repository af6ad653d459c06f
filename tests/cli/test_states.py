"""Chords in each state: they are named, repaired, and all is well afterwards."""

from __future__ import annotations

import pytest

from chordguard import tolerant
from chordguard.lifecycle import safety_net
from chordguard.recovery.kinds import KINDS
from tests.chords import stuck
from tests.cli.calls import BOTH, CLUSTER, call, normalized
from tests.harness import ROOT, wait_until

pytestmark = CLUSTER

PAGE = ROOT / "docs" / "operate.md"


def test_every_diagnosis_has_a_way():
    assert set(KINDS) - {"running", "unknown"} == set(stuck.WAYS)


@BOTH
@pytest.mark.parametrize("kind", stuck.WAYS)
def test_stuck_chord_is_named_repaired_and_well(cluster, gate, kind, backend_kind):
    if kind == "poller-lost" and backend_kind == "redis":
        pytest.skip("only chords on SQL have a poller")
    bring_about, remedy = stuck.WAYS[kind]
    result = bring_about(cluster, gate, tolerant(cluster.tasks.collect.s()))
    group_id = result.parent.id
    if kind == "size-missing":
        ledger = stuck.ledger_of(cluster)
        wait_until(lambda: stuck.is_overdue(ledger, group_id), what="the timeout")

    checked = call(cluster.app, "check", "--json")
    assert (1, "unhealthy") == (checked.code, checked.data["status"])
    (problem,) = checked.data["problems"]
    assert (group_id, kind, remedy, True) == (
        problem["group_id"],
        problem["diagnosis"],
        problem["repair"],
        problem["is_stuck"],
    )
    inspected = call(cluster.app, "inspect", group_id, "--verbose")
    assert 1 == inspected.code
    assert f"diagnosis  {kind}\n" in inspected.stdout
    assert f"evidence   {problem['reason'][:20]}" in inspected.stdout
    told = call(cluster.app, "repair", group_id, "--dry-run")
    assert 1 == told.code

    repaired = call(cluster.app, "repair", group_id, "--yes", "--json")

    assert 0 == repaired.code, repaired.stdout
    assert [(group_id, remedy, True)] == [
        (action["group_id"], action["action"], action["done"])
        for action in repaired.data["actions"]
    ]
    assert told.stdout.startswith(f"{group_id}  {remedy}\n")
    if PAGE.exists():
        text = PAGE.read_text(encoding="utf-8")
        section = text.partition(f"### {kind}\n")[2].partition("\n###")[0]
        assert normalized(told.stdout) in normalized(section)
    if kind == "poller-lost":
        received = f"Task celery.chord_unlock[{safety_net.unlock_id(group_id)}] received"
        wait_until(lambda: received in cluster.worker.log_text(), what="the poller")
    well = call(cluster.app, "check", "--json")
    assert (0, "healthy", []) == (well.code, well.data["status"], well.data["problems"])
    gate.open()
    # Where the members are not known, the body cannot run.
    is_known = (kind, backend_kind) != ("size-missing", "postgresql")
    assert ("SUCCESS" if is_known else "FAILURE") == cluster.outcome(result).state


def test_chord_that_runs_is_well_unless_it_is_too_old(cluster, gate):
    result = stuck.waiting_chord(cluster, gate)
    group_id = result.parent.id

    assert 0 == call(cluster.app, "check", "--max-age", "1h").code
    checked = call(cluster.app, "check", "--max-age", "0")

    assert 1 == checked.code
    assert f"{group_id}  running\n" in checked.stdout
    assert f"celery chords revoke {group_id}" in checked.stdout
    # Age alone is no reason to repair anything.
    assert "nothing to do\n" == call(cluster.app, "repair", "--auto", "--yes").stdout
    gate.open()
    assert [1, 2] == cluster.run(result)
