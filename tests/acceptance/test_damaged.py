"""Damaged chords: each ends as far as it can be read, and keeps nothing from the others.

For each backend all of them live at once on one worker, beside one that is well. A member that has
to come later waits in a queue of its own until the worker is told to consume it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from celery import chord, states

from chordguard import health_check, tolerant
from chordguard.ledger import access
from chordguard.ledger.packing import pack_data, unpack_data
from chordguard.recovery.diagnosis import diagnose_all
from tests.cli.calls import call
from tests.harness import Cluster, Clusters, state_and_value, wait_until
from tests.unit.ledger.chords import execute, rewrite

#: Seconds without progress after which these chords are settled.
TIMEOUT = 25
SETTINGS = {
    "chord_watchdog_interval": 0.3,
    "chord_unlock_first_delay": 600,
    "chord_timeout": TIMEOUT,
    "result_expires": 600,
}
#: Seconds in which each of them has ended: they are settled one after another.
DEADLINE = 60.0
#: A chord that ends before this many seconds are over was not settled.
LONG = 300
#: So many entries of the worker's log may be about one of them, beside Celery's own for a chord
#: that has failed.
LINES = 3

REDIS, SQLITE, POSTGRESQL = "redis", "sqlite", "postgresql"
ALL, SQL = (REDIS, SQLITE, POSTGRESQL), (SQLITE, POSTGRESQL)

#: What cannot be known of a chord, so that its result stays PENDING.
NOTHING = "nothing is known"

DEEP = "[" * 10_000 + "]" * 10_000


@dataclass
class Damage:
    """What is done to a chord, and how it has to end.

    `act` gets the cluster and the result; `ends` are a state and what its value says; `second` is
    where the second member waits: "nowhere" for ever, "later" until all chords are damaged.
    """

    name: str
    act: Callable[[Cluster, Any], None]
    ends: tuple[str, str] = (states.FAILURE, "was settled")
    second: str = "nowhere"
    backends: tuple[str, ...] = ALL
    #: Whether it is done when both members were counted, before anybody ends the chord.
    is_late: bool = False
    timeout: float = TIMEOUT
    is_tolerant: bool = False


@dataclass
class Site:
    """The chords of one backend."""

    cluster: Cluster
    chords: dict[str, Any] = field(default_factory=dict)
    #: What `check` and its siblings said once all were damaged.
    told: dict[str, Any] = field(default_factory=dict)


def ledger_of(cluster: Cluster) -> Any:
    return access.ledger_of(cluster.app.backend)


def in_record(name: str, value: Any) -> Callable[..., None]:
    def act(cluster: Cluster, result: Any) -> None:
        rewrite(ledger_of(cluster), result.parent.id, name, value)

    return act


def in_body(change: Callable[[dict[str, Any]], Any]) -> Callable[..., None]:
    def act(cluster: Cluster, result: Any) -> None:
        ledger = ledger_of(cluster)
        data = json.loads(json.dumps(unpack_data(cluster.app, ledger.read(result.parent.id).body)))
        in_record("body", pack_data(cluster.app, change(data)))(cluster, result)

    return act


def with_options(**options: Any) -> Callable[..., None]:
    return in_body(lambda body: {**body, "options": {**body["options"], **options}})


def deep_body(body: dict[str, Any]) -> dict[str, Any]:
    inner = {**body, "options": {}}
    for _ in range(400):
        inner = {**body, "options": {}, "subtask_type": "chord", "kwargs": {"body": inner}}
    return {**inner, "options": body["options"]}


def key_type(name: str) -> Callable[..., None]:
    def act(cluster: Cluster, result: Any) -> None:
        client, key = _key(cluster, result, name)
        client.delete(key)
        client.rpush(key, "x")

    return act


def lost(*names: str) -> Callable[..., None]:
    def act(cluster: Cluster, result: Any) -> None:
        for name in names:
            client, key = _key(cluster, result, name)
            client.delete(key)

    return act


def number_in_key(name: str) -> Callable[..., None]:
    def act(cluster: Cluster, result: Any) -> None:
        client, key = _key(cluster, result, name)
        client.set(key, b"\xff many", ex=600)

    return act


def _key(cluster: Cluster, result: Any, name: str) -> tuple[Any, bytes]:
    ledger = ledger_of(cluster)
    return ledger.backend.client, ledger.key(result.parent.id, name)


def stored(index: int, payload: Any, state: str = states.SUCCESS) -> Callable[..., None]:
    """Overwrite the stored result of a member by bytes that are none."""

    def act(cluster: Cluster, result: Any) -> None:
        backend, task_id = cluster.app.backend, result.parent.results[index].id
        backend.store_result(task_id, 7, state)
        if cluster.stack.backend == REDIS:
            text = json.dumps(payload) if not isinstance(payload, bytes) else payload
            backend.client.set(backend.get_key_for_task(task_id), text, ex=600)
        else:
            execute(
                SimpleNamespace(backend=backend),
                "UPDATE celery_taskmeta SET result = :value WHERE task_id = :id",
                id=task_id,
                value=payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
            )

    return act


def part_garbled(cluster: Cluster, result: Any) -> None:
    client, key = _key(cluster, result, ".j")
    client.delete(key)
    client.zadd(key, {b"\x80 truncated": 0})


def row_deleted(cluster: Cluster, result: Any) -> None:
    execute(
        ledger_of(cluster),
        "DELETE FROM celery_taskmeta WHERE task_id = :id",
        id=result.parent.results[0].id,
    )


def nullable(cluster: Cluster) -> None:
    """Let the columns of the ledger be NULL, as in tables that somebody made by hand."""
    ledger = ledger_of(cluster)
    names = ("returned", "created", "progressed", "claimed_until")
    if cluster.stack.backend == POSTGRESQL:
        for name in names:
            execute(ledger, f"ALTER TABLE chordguard_chord ALTER {name} DROP NOT NULL")


UNREADABLE = (states.SUCCESS, "ResultUnreadable")
DONE = (states.SUCCESS, "[1, 2]")
LOST = (states.FAILURE, "lost")
#: What is named of a damaged body.
BODY_PARTS = {
    "body",
    "chain",
    "deep",
    "headers",
    "kwargs",
    "link_error",
    "options",
    "subtask_type",
    "task_id",
}
FUTURE = 4e9

DAMAGES = [
    # Bodies: as far as they can be read.
    Damage("options is a list", in_body(lambda b: {**b, "options": ["x"]}), (NOTHING, "options")),
    Damage("kwargs is a list", in_body(lambda b: {**b, "kwargs": [1]}), ("FAILURE", "kwargs")),
    Damage("task_id is a number", with_options(task_id=7), (NOTHING, "task_id")),
    Damage("task_id is a list", with_options(task_id=["x"]), (NOTHING, "task_id")),
    Damage("chain is a number", with_options(chain=7), ("FAILURE", "chain")),
    Damage("link_error is a number", with_options(link_error=7), ("FAILURE", "link_error")),
    Damage("headers is a list", with_options(headers=["x"]), ("FAILURE", "headers")),
    Damage(
        "subtask_type is unknown",
        in_body(lambda b: {**b, "subtask_type": "x"}),
        ("FAILURE", "subtask_type"),
    ),
    Damage("body is a list", in_body(lambda b: [b]), (NOTHING, "body")),
    Damage("body is deep", in_body(deep_body), ("FAILURE", "deep")),
    Damage("body is binary", in_record("body", b"\x00\xff\x80"), (NOTHING, "body")),
    # Headers.
    Damage("header is garbage", in_record("header", "[broken"), ("FAILURE", "header")),
    Damage(
        "header is binary",
        in_record("header", b"\x00\xff\x80"),
        ("FAILURE", "header"),
        backends=(REDIS, SQLITE),
    ),
    Damage("header is deep", in_record("header", DEEP), ("FAILURE", "header")),
    Damage("header is a mapping", in_record("header", '{"a": 1}'), ("FAILURE", "header")),
    Damage("header is of numbers", in_record("header", "[1, 2]"), ("FAILURE", "header")),
    # Numbers and times.
    *(
        Damage(f"{name} is {value}", in_record(name, float(value)), backends=backends)
        for name in ("created", "progressed", "claimed_until")
        for value, backends in (
            ("nan", (REDIS, POSTGRESQL)),
            ("inf", ALL),
            ("1e30", ALL),
            (str(FUTURE), ALL),
        )
    ),
    *(
        Damage(f"{name} is a word", in_record(name, "soon"), backends=(REDIS, SQLITE))
        for name in ("created", "progressed", "claimed_until", "size")
    ),
    *(
        Damage(f"{name} is NULL", in_record(name, None), backends=(POSTGRESQL,))
        for name in ("created", "progressed", "claimed_until", "returned", "size")
    ),
    Damage("size is negative", in_record("size", -3)),
    Damage("seen is a word", in_record("seen", "many"), DONE, "later", (REDIS,)),
    Damage("lifetime is a word", in_record("lifetime", "long"), DONE, "later", (REDIS,)),
    Damage(".s is no number", number_in_key(".s"), DONE, "later", (REDIS,)),
    Damage(".t is no number", number_in_key(".t"), DONE, "later", (REDIS,)),
    Damage(".t is no number, and a member lost", number_in_key(".t"), backends=(REDIS,)),
    # Keys of a wrong type.
    *(
        Damage(f"{name} has a wrong type", key_type(name), DONE, "later", (REDIS,))
        for name in (".j", ".s", ".t", ".d", ".c")
    ),
    *(
        Damage(f"{name} has a wrong type, and a member is lost", key_type(name), backends=(REDIS,))
        for name in (".j", ".s", ".t", ".d", ".c")
    ),
    Damage("record has a wrong type", key_type(".chordguard"), DONE, "later", (REDIS,)),
    Damage(
        "record has a wrong type, and a member is lost",
        key_type(".chordguard"),
        # The key is named until a part, which finds it so, has deleted it.
        (NOTHING, "Could not check"),
        backends=(REDIS,),
    ),
    # Keys that are gone, before the last member comes.
    *(
        Damage(f"{' '.join(names)} lost", lost(*names), ends, "later", (REDIS,), timeout=timeout)
        for names, ends, timeout in (
            ((".j",), DONE, LONG),
            ((".s",), DONE, LONG),
            ((".d",), DONE, LONG),
            ((".t",), DONE, LONG),
            ((".j", ".s"), DONE, LONG),
            ((".j", ".d"), DONE, LONG),
            ((".j", ".s", ".d"), DONE, LONG),
            ((".chordguard",), DONE, LONG),
            ((".chordguard", ".d"), DONE, LONG),
            ((".s", ".chordguard"), LOST, TIMEOUT),
            ((".j", ".chordguard"), LOST, TIMEOUT),
            ((".j", ".s", ".d", ".t", ".chordguard"), (NOTHING, "nothing"), TIMEOUT),
        )
    ),
    *(
        Damage(f"{' '.join(names)} lost, and a member", lost(*names), ends, "nowhere", (REDIS,))
        for names, ends in (
            # What was counted is counted again from its stored result.
            ((".j",), (states.FAILURE, "no result of 1 of 2")),
            ((".s",), (states.FAILURE, "lost its size")),
            ((".j", ".s"), (states.FAILURE, "lost its size")),
            ((".j", ".d"), (states.FAILURE, "no result of 1 of 2")),
            ((".j", ".s", ".d", ".t"), (states.FAILURE, "lost its size")),
            ((".chordguard",), (NOTHING, "record")),
            ((".j", ".s", ".d", ".t", ".chordguard"), (NOTHING, "nothing")),
        )
    ),
    # The same when all members were counted.
    *(
        Damage(
            f"{' '.join(names)} lost late",
            lost(*names),
            ends,
            "later",
            (REDIS,),
            is_late=True,
            timeout=LONG,
        )
        for names, ends in (
            ((".j",), DONE),
            ((".s",), DONE),
            ((".j", ".s"), DONE),
            ((".j", ".d"), DONE),
            ((".j", ".s", ".d"), DONE),
            ((".s", ".chordguard"), (NOTHING, "record")),
            ((".j", ".chordguard"), (NOTHING, "record")),
            ((".j", ".s", ".d", ".t", ".c", ".chordguard"), (NOTHING, "nothing")),
        )
    ),
    # Results.
    *(
        Damage(
            f"result is {what}",
            stored(1, value),
            UNREADABLE,
            timeout=LONG,
            is_tolerant=True,
            backends=backends,
        )
        for what, value, backends in (
            ("binary", b"\xff truncated", ALL),
            ("a list", [1], (REDIS,)),
            ("a number", 7, (REDIS,)),
            ("without a result", {"status": "SUCCESS"}, (REDIS,)),
            ("with a list as state", {"status": ["SUCCESS"], "result": 7}, (REDIS,)),
        )
    ),
    Damage(
        "counted result is binary",
        stored(0, b"\xff truncated"),
        UNREADABLE,
        "later",
        SQL,
        timeout=LONG,
        is_tolerant=True,
    ),
    Damage(
        "counted result is binary, strict",
        stored(0, b"\xff truncated"),
        (states.FAILURE, "cannot be decoded"),
        "later",
        SQL,
        timeout=LONG,
    ),
    *(
        Damage(
            f"failure is {value!r}",
            stored(1, {"status": states.FAILURE, "result": value}),
            (states.FAILURE, "Dependency"),
            backends=(REDIS,),
            timeout=LONG,
        )
        for value in ("oops", 7, None, {"exc_type": ["x"]})
    ),
    Damage("counted part is garbled", part_garbled, DONE, "later", (REDIS,), timeout=LONG),
    Damage(
        "counted row is deleted", row_deleted, (states.FAILURE, "no result of 1 of 2"), "later", SQL
    ),
]


def start(cluster: Cluster, damage: Damage | None) -> Any:
    t, name = cluster.tasks, cluster.stack.name
    where = "later" if damage is None else damage.second
    body = t.collect.s()
    if damage is not None and (damage.is_tolerant or damage.timeout != TIMEOUT):
        body = (
            tolerant(body, timeout=damage.timeout) if damage.is_tolerant else _strict(body, damage)
        )
    return chord([t.echo.s(1), t.echo.s(2).set(queue=f"{name}-{where}")], body).apply_async()


def _strict(body: Any, damage: Damage) -> Any:
    from chordguard import strict

    return strict(body, timeout=damage.timeout)


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.xdist_group(f"damaged-{kind}")) for kind in ALL],
)
def site(request: pytest.FixtureRequest, servers: Any) -> Any:
    kind = request.param
    kept = Clusters(servers)
    with kept.alone(kind, settings=SETTINGS) as cluster:
        site = Site(cluster)
        nullable(cluster)
        ledger, app = ledger_of(cluster), cluster.app
        damages = [damage for damage in DAMAGES if kind in damage.backends]
        site.chords = {damage.name: start(cluster, damage) for damage in damages}
        claims = {}
        for damage in damages:
            id_ = site.chords[damage.name].parent.id
            wait_until(lambda id_=id_: ledger.read(id_).returned == 1, what="a part")
            if damage.is_late:
                claims[damage.name] = ledger.claim(id_)
        good = site.chords["good"] = start(cluster, None)
        wait_until(lambda: ledger.read(good.parent.id).returned == 1, what="a part")
        for damage in damages:
            if not damage.is_late:
                damage.act(cluster, site.chords[damage.name])
        site.told = {
            command: call(app, command, "--json") for command in ("list", "check", "status")
        }
        site.told["health"] = health_check(app)
        with contextlib.suppress(Exception):
            site.told["diagnoses"] = diagnose_all(app)
        app.control.add_consumer(
            f"{cluster.stack.name}-later", destination=[cluster.worker.hostname], reply=True
        )
        for name, claim in claims.items():
            id_ = site.chords[name].parent.id
            wait_until(lambda id_=id_: ledger.read(id_).returned == 2, what="both parts")
            next(d for d in damages if d.name == name).act(cluster, site.chords[name])
            ledger.release(claim)
            if kind == REDIS:
                # Without its record it is due when the claim would have run out.
                ledger.backend.client.zadd(ledger.key("chordguard", ".due"), {id_: 1.0}, xx=True)
        yield site


def damage_named(name: str) -> Damage:
    return next(damage for damage in DAMAGES if damage.name == name)


def test_chord_beside_them_completes(site):
    result = site.chords["good"]

    wait_until(result.ready, DEADLINE, "the good chord")

    assert [1, 2] == result.get(timeout=5)


@pytest.mark.parametrize("name", [damage.name for damage in DAMAGES])
def test_each_ends_as_far_as_it_can_be_read(site, name):
    damage, cluster = damage_named(name), site.cluster
    if cluster.stack.backend not in damage.backends:
        pytest.skip("not on this backend")
    result, (state, text) = site.chords[name], damage.ends
    if cluster.stack.backend != REDIS and text in BODY_PARTS:
        # The safety net's message holds the body, too.
        state, text = states.FAILURE, "was settled"

    if state == NOTHING:
        wait_until(
            lambda: text in "\n".join(lines_about(site, name)), DEADLINE, "a line in the log"
        )
        assert result.state == states.PENDING
    else:
        wait_until(result.ready, DEADLINE, name)
        assert (state, True) == (result.state, text in str(state_and_value(result)[1])), (
            result.result
        )
    assert len(lines_about(site, name)) <= LINES, lines_about(site, name)
    assert cluster.worker.is_alive


def lines_about(site: Site, name: str) -> list[str]:
    result = site.chords[name]
    tasks = {result.id, *(member.id for member in result.parent.results)}
    return [
        line
        for line in site.cluster.worker.log.read_text(errors="replace").splitlines()
        # The error of a failed chord, which has its traceback, names the chord again.
        if line.startswith("[20")
        and "' raised: " not in line
        and result.parent.id in line
        and not any(f"[{id_}]" in line for id_ in tasks)
    ]


@pytest.mark.parametrize("command", ["check", "list", "status"])
def test_commands_report_all_of_them(site, command):
    answer = site.told[command]

    assert answer.code in (1, 69), answer.stderr
    assert "problem" not in answer.data, answer.data
    if command == "list":
        listed = {each["group_id"] for each in answer.data["chords"]}
        assert site.chords["good"].parent.id in listed
        gone = {n for n, r in site.chords.items() if r.parent.id not in listed and not r.ready()}
        # Without a record nothing is known of it. Others may have ended before.
        assert all(".chordguard" in name or "record" in name for name in gone), gone


def test_health_check_counts_them(site):
    assert site.told["health"]["active"], site.told["health"]


def test_good_one_is_diagnosed_as_it_is(site):
    found = {each.group_id: each for each in site.told["diagnoses"]}

    assert found[site.chords["good"].parent.id].kind in ("running", "member-lost")
    for name in ("options is a list", "header is deep", "body is binary"):
        each = found[site.chords[name].parent.id]
        assert each.kind == "unknown"
        assert damage_named(name).ends[1] in each.reason


def test_log_holds_no_tracebacks(site):
    entry = ""
    for line in site.cluster.worker.log.read_text(errors="replace").splitlines():
        entry = line if line.startswith("[20") else entry
        # Celery logs a failed chord so.
        assert "Traceback" not in line or ("Chord '" in entry and "' raised: " in entry), entry


@pytest.mark.parametrize("is_tolerant", [True, False], ids=["tolerant", "strict"])
@pytest.mark.parametrize("kind", SQL)
def test_polled_chord_ends_at_once(clusters, gate, kind, is_tolerant):
    cluster = clusters(kind, settings={"chord_ledger": False, "chord_timeout": LONG})
    t = cluster.tasks
    body = tolerant(t.collect.s()) if is_tolerant else t.collect.s()
    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], body).apply_async()
    wait_until(result.parent.results[0].ready, what="the first member")
    stored(0, b"\xff truncated")(cluster, result)
    gate.open()

    wait_until(result.ready, DEADLINE, "the chord")

    state, value = state_and_value(result)
    assert state == (states.SUCCESS if is_tolerant else states.FAILURE)
    assert "ResultUnreadable" in str(value) or not is_tolerant
    assert cluster.worker.log_text().count("Traceback") <= 1
