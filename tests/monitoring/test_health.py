"""Whether all is well is told of real chords; what cannot be read is never well."""

from __future__ import annotations

import json
import math
import socket
import time
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from chordguard import LedgerMissing, check_stuck_chords, get_active_chords, health_check, repair
from chordguard.errors import CannotTell
from chordguard.lifecycle import safety_net
from tests.app_factory import make_app
from tests.chords import stuck
from tests.harness import wait_until
from tests.servers import free_port

#: No other file's chords are on it.
pytestmark = pytest.mark.cluster(settings=stuck.ALONE, shared_by=__name__)

BACKENDS = pytest.mark.parametrize("backend_kind", ["redis", "postgresql"])

#: Seconds in which a probe has to have its answer.
DEADLINE = 5.0


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing has to be quiet first, and no answer is kept."""
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("chordguard.monitoring.health.KEPT", 0.0)
    monkeypatch.setattr("chordguard.monitoring.health.KEPT_TIMES", 0)


def app_with(cluster, **settings):
    """Return an app like that of the cluster, with other settings."""
    config = {**cluster.config, "settings": {**cluster.config["settings"], **settings}}
    return make_app(config, patched=True)


@BACKENDS
def test_app_without_chords_is_healthy(cluster):
    answer = health_check(cluster.app)

    assert "healthy" == answer["status"], answer
    assert "chords: 0 active" == answer["reason"]
    assert (0, {}, 0.0, []) == (
        answer["active"],
        answer["stuck"],
        answer["oldest_age"],
        answer["chords"],
    )
    assert answer == json.loads(json.dumps(answer))


@BACKENDS
def test_chord_that_runs_is_healthy_until_it_is_too_old(cluster, gate):
    result = stuck.waiting_chord(cluster, gate)
    try:
        answer = health_check(cluster.app)
        assert ("healthy", 1, 1) == (
            answer["status"],
            answer["active"],
            answer["missing_members"],
        )
        assert [result.parent.id] == [chord.group_id for chord in get_active_chords(cluster.app)]
        assert [] == check_stuck_chords(cluster.app, max_age=timedelta(hours=1), asks_workers=False)
        assert "healthy" == health_check(cluster.app, max_age=3600)["status"]

        answer = health_check(cluster.app, max_age=0.001)
        assert ("unhealthy", 1) == (answer["status"], answer["too_old"])
        assert [result.parent.id] == [chord["group_id"] for chord in answer["chords"]]
        (found,) = check_stuck_chords(cluster.app, max_age=0.001, asks_workers=False)
        assert "running" == found.kind
    finally:
        gate.open()
    assert [1, 2] == cluster.run(result)
    assert [] == get_active_chords(cluster.app)


@BACKENDS
@pytest.mark.parametrize("kind", stuck.WAYS)
def test_stuck_chord_is_unhealthy_until_it_is_mended(cluster, backend_kind, gate, kind):
    if (backend_kind, kind) == ("redis", "poller-lost"):
        pytest.skip("only chords on SQL have a poller")
    bring, mends = stuck.WAYS[kind]
    asks_workers = kind in ("member-lost", "poller-lost")
    result = bring(cluster, gate)
    ledger, group_id = stuck.ledger_of(cluster), result.parent.id
    if kind == "size-missing":
        wait_until(lambda: stuck.is_overdue(ledger, group_id), what="its timeout")
    try:
        answer = health_check(cluster.app, asks_workers=asks_workers)
        (found,) = check_stuck_chords(cluster.app, asks_workers=asks_workers)
        actions = repair(cluster.app, group_id, dry_run=False)
        if kind == "poller-lost":
            received = f"[{safety_net.unlock_id(group_id)}] received"
            wait_until(lambda: received in cluster.worker.log_text(), what="the poller")
        assert "healthy" == health_check(cluster.app, asks_workers=asks_workers)["status"]
    finally:
        gate.open()
        if kind != "poller-lost":
            ledger.close(group_id)

    assert ("unhealthy", {kind: 1}) == (answer["status"], answer["stuck"])
    assert f"chords: 1 active, 1 {kind}" == answer["reason"]
    assert (group_id, kind) == (found.group_id, found.kind)
    assert [mends] == [action.name for action in actions]
    wait_until(lambda: not get_active_chords(cluster.app), what="its end")


@BACKENDS
def test_lost_member_is_not_seen_without_asking(cluster, gate):
    result = stuck.member_lost(cluster, gate)
    try:
        assert "healthy" == health_check(cluster.app)["status"]
    finally:
        stuck.ledger_of(cluster).close(result.parent.id)


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_answer_is_kept_for_a_while(cluster, monkeypatch):
    monkeypatch.setattr("chordguard.monitoring.health.KEPT", 60.0)
    app = app_with(cluster)

    first = health_check(app)

    assert first["checked"] == health_check(app)["checked"]
    assert first["checked"] < health_check(app, max_age=60)["checked"]


NO_AGES = [0, -1, True, "1", timedelta(0), math.nan, math.inf, 1e300, 10**400, timedelta.max]


@pytest.mark.parametrize("backend_kind", ["redis"])
@pytest.mark.parametrize("max_age", NO_AGES, ids=repr)
def test_age_that_makes_no_sense_is_refused(cluster, max_age):
    with pytest.raises(ValueError, match=r"max_age = .* makes no sense: expected None, seconds"):
        health_check(cluster.app, max_age=max_age)
    with pytest.raises(ValueError, match=r"max_age = .* makes no sense: expected None, seconds"):
        check_stuck_chords(cluster.app, max_age=max_age)


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_app_without_a_ledger_is_unknown(cluster):
    app = app_with(cluster, chord_ledger=False)

    answer = health_check(app)

    assert ("unknown", None) == (answer["status"], answer["active"])
    assert "chord_ledger = True" in answer["reason"]
    with pytest.raises(LedgerMissing):
        get_active_chords(app)


def unknown_within_the_deadline(app, **options):
    """Return why it is not known whether all is well."""
    started = time.monotonic()
    answer = health_check(app, **options)
    seconds = time.monotonic() - started
    assert "unknown" == answer["status"], answer
    assert seconds < DEADLINE, answer
    return answer["reason"]


@BACKENDS
def test_no_worker_is_unknown(cluster):
    app = app_with(cluster, control_exchange=f"{cluster.stack.name}-nobody")

    assert "no worker answered" in unknown_within_the_deadline(app)
    assert "healthy" == health_check(app, ping=False)["status"]


#: A password that nobody may see.
SECRET = "hush-hush"


@pytest.fixture(params=["down", "refused", "silent"])
def spoilt(request):
    """Return a function that makes an address of trouble of another one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"down": free_port(), "silent": silent.getsockname()[1]}

        def spoil(url: str) -> str:
            scheme, _, rest = url.partition("://")
            parts = urlsplit(f"//{rest}")
            port = ports.get(request.param, parts.port)
            return f"{scheme}://nobody:{SECRET}@{parts.hostname}:{port}{parts.path}"

        yield spoil


@pytest.mark.parametrize("backend_kind", ["redis"])
def test_backend_that_cannot_be_read_is_unknown(cluster, spoilt):
    app = app_with(cluster, result_backend=spoilt(cluster.config["settings"]["result_backend"]))

    reason = unknown_within_the_deadline(app)

    assert reason.startswith("the result backend ")
    assert SECRET not in reason
    with pytest.raises(CannotTell, match="the result backend"):
        get_active_chords(app)


@pytest.mark.parametrize("backend_kind", ["postgresql"])
@pytest.mark.parametrize("spoilt", ["down", "refused"], indirect=True)
def test_database_that_cannot_be_read_is_unknown(cluster, spoilt):
    url = spoilt(cluster.config["settings"]["result_backend"])
    app = app_with(cluster, result_backend=url)

    reason = unknown_within_the_deadline(app)

    assert reason.startswith("the result backend ")
    assert SECRET not in reason


@pytest.mark.parametrize("backend_kind", ["redis"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_broker_that_cannot_be_reached_is_unknown(cluster, servers, require, broker, spoilt):
    require(broker)
    app = app_with(cluster, broker_url=spoilt(servers.get(broker).url))

    reason = unknown_within_the_deadline(app)

    assert reason.startswith("the broker ")
    assert SECRET not in reason
