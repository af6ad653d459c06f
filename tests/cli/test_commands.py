"""What the commands show of real chords, and what they do to them."""

from __future__ import annotations

import json
import re

import pytest
from celery import chord, group
from celery.exceptions import ChordError

from chordguard import tolerant
from tests.app_factory import make_app
from tests.chords import stuck
from tests.cli.calls import BOTH, CLUSTER, call
from tests.harness import wait_until
from tests.tasks import named

pytestmark = CLUSTER


def with_failure(cluster, gate):
    """Start a tolerant chord of which one member is done, one failed and one waits."""
    t = cluster.tasks
    header = [t.echo.s(1), t.fail.s("no luck"), t.wait_for_file.s(gate.path, 3)]
    result = chord(header, tolerant(t.collect.s())).apply_async()
    read = stuck.ledger_of(cluster).read
    wait_until(lambda: read(result.parent.id).returned == 2, what="two parts")
    return result


@BOTH
def test_status_counts_chords_and_members(cluster, gate):
    result = with_failure(cluster, gate)
    stuck.part_lost(cluster, gate)

    found = call(cluster.app, "--json", "status")

    data = found.data
    assert (1, 2, 1) == (found.code, data["live"], data["stuck"])
    assert {"running": 1, "part-lost": 1} == data["diagnoses"]
    assert {"size": 5, "done": 3, "failed": 1, "missing": 2} == data["members"]
    assert result.parent.id == data["oldest"]["group_id"]
    text = call(cluster.app, "status").stdout
    assert "live chords  2\n" in text
    assert "members  3 of 5 done, 1 of them failed, 2 missing\n" in text
    gate.open()


def test_status_without_chords_is_healthy(cluster):
    found = call(cluster.app, "status")

    assert (0, "diagnosis    chords\nlive chords  0\n") == (found.code, found.stdout)
    assert "no live chords\n" == call(cluster.app, "list").stdout


def test_list_has_filters(cluster, gate):
    t = cluster.tasks
    first = stuck.waiting_chord(cluster, gate)
    second = stuck.member_lost(cluster, gate, t.tsum.s())
    first_id, second_id = first.parent.id, second.parent.id

    def listed(*arguments):
        found = call(cluster.app, "list", *arguments, "--json")
        return found.code, [one["group_id"] for one in found.data["chords"]]

    assert (1, [first_id, second_id]) == listed()
    assert (0, [first_id]) == listed("--body", "*.collect")
    assert (1, [second_id]) == listed("--diagnosis", "member-lost", "--stuck")
    assert (0, []) == listed("--min-age", "1h")
    rows = call(cluster.app, "list").stdout.splitlines()
    titles = ["chord", "diagnosis", "age", "done", "failed", "rate", "eta", "body"]
    assert titles == rows[0].split()
    assert rows[1].startswith(f"{first_id}  running ")
    assert rows[1].endswith(" tests.collect")
    assert "1/2" in rows[1]
    assert re.search(r" 0 +[\d.e-]+/s +[\d.]+ (s|min) ", rows[1])
    (chord_,) = call(cluster.app, "list", "--body", "*.collect", "--json").data["chords"]
    assert chord_["rate"] > 0
    assert chord_["eta"] == pytest.approx(1 / chord_["rate"], rel=0.05)
    assert "1 more: see --limit\n" == call(cluster.app, "list", "--limit", "1").stderr
    gate.open()


@BOTH
def test_inspect_shows_members_body_and_policy(cluster, gate):
    result = with_failure(cluster, gate)
    done, failed, waiting = (member.id for member in result.parent.results)

    data = call(cluster.app, "inspect", result.parent.id, "--verbose", "--json").data

    assert [(done, "SUCCESS"), (failed, "FAILURE"), (waiting, "STARTED")] == [
        (member["id"], member["state"]) for member in data["members"]
    ]
    worker = cluster.worker.hostname
    assert ["tests.echo", "tests.fail", None] == [m["name"] for m in data["members"]]
    assert [worker, worker, f"runs on {worker}"] == [m["worker"] for m in data["members"]]
    assert ["1", "ValueError: no luck", None] == [m["result"] for m in data["members"]]
    assert data["members"][0]["time"][:4].isdigit()
    assert {"size": 3, "done": 2, "failed": 1, "missing": 1} == data["chord"]["members"]
    assert [result.id] == data["body_ids"]
    assert {"tolerant": True, "max_errors": None, "error_format": "string"} == {
        key: data["policy"][key] for key in ("tolerant", "max_errors", "error_format")
    }
    text = call(cluster.app, "inspect", result.parent.id, "-v").stdout
    assert "policy     tolerant, errors as string, settled after 10.0 min\n" in text
    assert f"{failed}\n  ValueError: no luck\n" in text
    assert re.search(r"^rate       [\d.e-]+/s, all are done in [\d.]+ (s|min)$", text, re.MULTILINE)
    gate.open()
    assert 3 == cluster.run(result)[2]


@BOTH
def test_names_of_members_are_those_of_kept_signatures(clusters, backend_kind, gate):
    cluster = clusters(backend_kind, settings={**stuck.ALONE, "chord_store_signatures": True})
    result = stuck.waiting_chord(cluster, gate)

    data = call(cluster.app, "inspect", result.parent.id, "--json").data

    assert ["tests.echo", "tests.wait_for_file"] == [member["name"] for member in data["members"]]
    gate.open()
    assert [1, 2] == cluster.run(result)


@BOTH
def test_members_that_store_no_result_are_shown(cluster, gate):
    t = cluster.tasks
    header = [t.ignored_result.s(1), t.wait_for_file.s(gate.path, 2)]
    result = chord(header, t.collect.s()).apply_async()
    read = stuck.ledger_of(cluster).read
    wait_until(lambda: read(result.parent.id).returned == 1, what="a part")

    data = call(cluster.app, "inspect", result.parent.id, "-v", "--json").data

    assert ("SUCCESS", "1") == tuple(data["members"][0][key] for key in ("state", "result"))
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_chord_that_nobody_knows_cannot_be_told(cluster):
    for command in (["inspect"], ["repair", "--yes"], ["revoke", "--yes"]):
        found = call(cluster.app, *command, "no-such-chord", "--json")
        assert (69, "unknown") == (found.code, found.data["status"]), command
    assert "the ledger does not know it" in call(cluster.app, "inspect", "no-such-chord").stdout


def test_bodies_are_named_by_their_tasks(cluster, gate):
    t = cluster.tasks
    bodies = {
        "tests.tsum | tests.echo": t.tsum.s() | t.echo.s(),
        "group(tests.echo, tests.tsum)": group(t.echo.s(), t.tsum.s()),
        "chord(tests.tsum)": chord([t.tsum.s()], t.tsum.s()),
    }
    header = [t.wait_for_file.s(gate.path, 1)]
    results = [chord(header, body).apply_async() for body in bodies.values()]

    listed = call(cluster.app, "list", "--json").data["chords"]

    assert sorted(bodies) == sorted(one["body"] for one in listed)
    gate.open()
    for result in results:
        assert "SUCCESS" == cluster.outcome(result).state


def test_repair_asks_and_takes_no_for_an_answer(cluster, gate, monkeypatch):
    result = stuck.part_lost(cluster, gate)

    asked = call(cluster.app, "repair", "--auto")
    assert (2, "") == (asked.code, asked.stdout)
    assert "expected --yes" in asked.stderr
    assert 2 == call(cluster.app, "repair").code
    monkeypatch.setattr("chordguard.cli.mending._check_terminal", lambda: None)
    assert 130 == call(cluster.app, "repair", "--auto", text="n\n").code
    assert 1 == call(cluster.app, "check").code
    assert 0 == call(cluster.app, "repair", "--auto", text="y\n").code

    assert [1, 2] == cluster.run(result)
    gate.open()


def test_fix_asks_about_each_chord(cluster, gate, monkeypatch):
    monkeypatch.setattr("chordguard.cli.mending._check_terminal", lambda: None)
    results = [stuck.part_lost(cluster, gate) for _ in range(2)]
    ids = [result.parent.id for result in results]

    quit_at_once = call(cluster.app, "fix", text="q\n")
    assert 130 == quit_at_once.code
    assert f"{ids[0]}: part-lost" in quit_at_once.stderr
    assert "count the members whose results are stored" in quit_at_once.stderr
    partly = call(cluster.app, "fix", "--json", text="y\nn\n")
    assert [True, None] == [
        action["done"] for action in json.loads(partly.stdout.strip())["actions"]
    ]
    assert 1 == partly.code
    assert [1, 2] == cluster.run(results[0])
    one_by_one = call(cluster.app, "repair", ids[1], "--interactive", text="y\n")
    assert 0 == one_by_one.code
    assert f"{ids[1]}: part-lost" in one_by_one.stderr
    assert [1, 2] == cluster.run(results[1])
    assert "nothing to do\n" == call(cluster.app, "fix", "--yes").stdout
    gate.open()


def test_lost_members_are_sent_again_on_request(clusters, backend_kind, gate):
    cluster = clusters(backend_kind, settings={**stuck.ALONE, "chord_store_signatures": True})
    result = stuck.member_lost(cluster, gate)

    told = call(cluster.app, "repair", result.parent.id, "--resend", "--dry-run", "--json")
    assert ["resend"] == [action["action"] for action in told.data["actions"]]
    done = call(cluster.app, "repair", result.parent.id, "--resend", "--yes", "--json")

    assert [("resend", True)] == [(a["action"], a["done"]) for a in done.data["actions"]]
    stuck.ledger_of(cluster).close(result.parent.id)


@BOTH
@pytest.mark.parametrize("is_tolerant", [False, True], ids=["strict", "tolerant"])
def test_revoked_chord_ends_and_its_members_too(cluster, gate, is_tolerant):
    body = cluster.tasks.collect.s()
    result = stuck.waiting_chord(cluster, gate, tolerant(body) if is_tolerant else body)
    group_id, second = result.parent.id, result.parent.results[1]

    told = call(cluster.app, "revoke", "--max-age", "0", "--dry-run", "--json")
    assert [(group_id, None)] == [(a["group_id"], a["done"]) for a in told.data["actions"]]
    done = call(cluster.app, "revoke", group_id, "--yes", "--json")

    assert 0 == done.code, done.stdout
    assert [(group_id, "abort", True)] == [
        (a["group_id"], a["action"], a["done"]) for a in done.data["actions"]
    ]
    ended = cluster.outcome(result)
    if is_tolerant:
        assert 1 == ended.value[0]
        assert ended.value[1].startswith(("ChordMemberLost", "TaskRevokedError"))
    else:
        assert isinstance(ended.value, ChordError)
    wait_until(lambda: second.state == "REVOKED", what="the member that ran")
    assert 0 == call(cluster.app, "status").code


def test_revoke_wants_to_know_which(cluster):
    assert 2 == call(cluster.app, "revoke", "--yes").code
    assert 2 == call(cluster.app, "revoke", "some", "--max-age", "1h", "--yes").code


@BOTH
def test_clean_removes_what_has_ended_and_leaves_what_lives(cluster, gate):
    ended = stuck.body_done(cluster, gate).parent.id
    gate_of_alive = type(gate)(gate.path + "-alive")
    alive = stuck.waiting_chord(cluster, gate_of_alive)

    told = call(cluster.app, "clean", "--dry-run", "--json")
    assert (1, [ended], False) == (told.code, told.data["ended"], told.data["removed"])
    done = call(cluster.app, "clean")

    assert (0, "ended, still in the ledger   1") == (
        done.code,
        done.stdout.splitlines()[1],
    )
    assert [alive.parent.id] == stuck.ledger_of(cluster).group_ids()
    gate_of_alive.open()
    assert [1, 2] == cluster.run(alive)


def test_clean_purges_queues_only_when_forced(cluster):
    # Nobody works on that queue.
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    name = f"{cluster.stack.name}-idle"
    names = ("queue", "exchange", "routing_key")
    config["settings"].update((f"task_default_{what}", name) for what in names)
    app = make_app(config, patched=True)
    app.tasks["tests.echo"].apply_async((1,))

    assert 2 == call(app, "clean", "--force").code
    counted = call(app, "clean", "--all-queues", "--json")
    assert (1, {name: 1}, False) == (counted.code, counted.data["queues"], counted.data["purged"])
    purged = call(app, "clean", "--all-queues", "--force")
    assert 0 == purged.code
    assert f"{name}: 1 messages" in purged.stderr
    assert {name: 0} == call(app, "clean", "--all-queues", "--json").data["queues"]


def test_watch_looks_again_and_again(cluster, gate):
    result = stuck.waiting_chord(cluster, gate)

    plain = call(cluster.app, "watch", "--count", "2", "--interval", "0.1")
    lines = call(cluster.app, "--json", "watch", "--count", "2", "--interval", "0.1").stdout

    assert 0 == plain.code
    assert 2 == plain.stdout.count(f"{result.parent.id}  running")
    assert "[##########..........]" in plain.stdout
    looks = [json.loads(line) for line in lines.splitlines()]
    assert [[result.parent.id]] * 2 == [[c["group_id"] for c in look["chords"]] for look in looks]
    gate.open()
    assert [1, 2] == cluster.run(result)


@BOTH
def test_chords_without_a_ledger_are_seen_on_request(cluster, gate):
    """As those are that were started before the install."""
    app = make_app(cluster.config, patched=True)
    app.conf.chord_ledger = False
    t = named(app)
    header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2)]
    result = chord(header, t.collect.s(), app=app).apply_async()
    group_id = result.parent.id
    wait_until(lambda: result.parent.results[0].state == "SUCCESS", what="the first member")

    def seen(*command):
        found = call(cluster.app, *command, "--scan", "--json")
        assert 0 == found.code
        return [stranger["group_id"] for stranger in found.data["without_ledger"]]

    assert "without_ledger" not in call(cluster.app, "list", "--json").data
    # A poller that looks at its chord just now is not scheduled.
    for command in ("list", "check", "status"):
        wait_until(lambda c=command: seen(c) == [group_id], what=command)
    for command, line in (
        ("list", f"{group_id}  without ledger"),
        ("check", f"{group_id}  without ledger"),
        ("status", "without ledger  1"),
    ):
        wait_until(
            lambda c=command, li=line: li in call(cluster.app, c, "--scan").stdout, what=line
        )
    gate.open()
    assert "SUCCESS" == cluster.outcome(result).state


def test_ddl_has_the_names_of_the_app(cluster):
    found = call(cluster.app, "ddl", "--dialect", "mysql", "--json")

    assert 0 == found.code
    assert "CREATE TABLE chordguard_chord" in found.data["statements"][0]
    assert any("LONGBLOB" in statement for statement in found.data["alterations"])


def test_doctor_prints_json(cluster):
    found = call(cluster.app, "doctor", "--json")

    assert "applied" in {patch["status"] for patch in found.data["patches"]}
    assert "danger" in found.stderr


def test_app_without_the_patches_is_refused(cluster):
    app = make_app(cluster.config, patched=False)

    found = call(app, "check")

    assert (2, "") == (found.code, found.stdout)
    assert "install_patches" in found.stderr
