"""Real chords, brought into each state: what is the matter is told, and mended."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
from celery import chain, chord, states
from celery.exceptions import ChordError
from kombu.utils.uuid import uuid

from chordguard import LedgerMissing, diagnose, repair, signals, tolerant
from chordguard.errors import CannotTell
from chordguard.ledger import claims
from chordguard.ledger.access import bounded_ledger
from chordguard.ledger.packing import pack_data
from chordguard.lifecycle import safety_net
from tests.app_factory import make_app
from tests.chords.stuck import ALONE, ledger_of, waiting_chord
from tests.harness import running_worker, wait_until

#: Seconds in which there is an answer, even under load; what is not bounded takes a minute.
BOUNDED = 20

#: So that it is quiet at once.
pytestmark = [
    pytest.mark.parametrize("backend_kind", ["redis", "postgresql"]),
    pytest.mark.usefixtures("quiet"),
    pytest.mark.cluster(settings=ALONE),
]


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr("chordguard.recovery.evidence.QUIET_SECONDS", 0.0)


def kind_of(cluster, result):
    return diagnose(cluster.app, result.parent.id).kind


def done(cluster, gate, result):
    """Let the second member end."""
    gate.open()
    wait_until(lambda: result.parent.results[1].state == states.SUCCESS, what="the second member")


def mend(cluster, result):
    """Return the names of what was done, which the dry run told before."""
    told = repair(cluster.app, result.parent.id)
    assert all(action.is_done is None for action in told)
    actions = repair(cluster.app, result.parent.id, dry_run=False)
    assert [action.name for action in told] == [action.name for action in actions]
    assert all(action.is_done for action in actions)
    return [action.name for action in actions]


def test_running(cluster, gate):
    result = waiting_chord(cluster, gate)

    found = diagnose(cluster.app, result.parent.id)

    second = result.parent.results[1].id
    assert ("running", (second,)) == (found.kind, found.missing), found.reason
    assert cluster.worker.hostname in found.evidence[second]
    assert [] == mend(cluster, result)
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_members_that_wait_are_not_lost(cluster, gate):
    t, queue = cluster.tasks, f"{cluster.stack.name}-busy"
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    config["settings"]["worker_prefetch_multiplier"] = 1
    members = [t.wait_for_file.s(gate.path, number).set(queue=queue) for number in range(6)]
    with running_worker(config, concurrency=1, queues=[queue]):
        result = chord(members, t.collect.s()).apply_async()
        wait_until(lambda: len(held(cluster, result)) > 1, what="a member that a worker has")

        found = diagnose(cluster.app, result.parent.id)

        assert "running" == found.kind, found.reason
        assert f"waits in {queue}" in found.evidence.values()
        assert [] == repair(cluster.app, result.parent.id, dry_run=False)
        gate.open()
        assert list(range(6)) == cluster.run(result)


def held(cluster, result):
    """Return where the members of a chord are."""
    return {place.split()[0] for place in diagnose(cluster.app, result.parent.id).evidence.values()}


def test_member_of_a_worker_that_does_not_answer_is_not_lost(cluster, gate):
    result = waiting_chord(cluster, gate)
    # Until it runs its message may still lie where the broker keeps what was handed out.
    wait_until(lambda: (cluster.activity() or {}).get("active"), what="a running member")
    os.kill(cluster.worker.process.pid, signal.SIGSTOP)
    try:
        with running_worker(cluster.config, queues=[f"{cluster.stack.name}-other"]):
            found = diagnose(cluster.app, result.parent.id)
            assert "unknown" == found.kind, found.reason
            assert f"{cluster.worker.hostname} did not answer" in found.reason
            assert [] == repair(cluster.app, result.parent.id, dry_run=False)
    finally:
        os.kill(cluster.worker.process.pid, signal.SIGCONT)
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_unknown_where_no_worker_answers(cluster, gate):
    result = waiting_chord(cluster, gate)
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    config["settings"]["control_exchange"] = f"{cluster.stack.name}-nobody"
    app = make_app(config, patched=True)

    found = diagnose(app, result.parent.id)

    assert "unknown" == found.kind
    assert "no worker answered" in found.reason
    assert [] == repair(app, result.parent.id)
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_member_lost(cluster, gate, record):
    t = cluster.tasks
    nowhere = f"{cluster.stack.name}-nowhere"
    header = [t.echo.s(1), t.echo.s(2).set(queue=nowhere)]
    results = [
        chord(header, mark(t.collect.s(record=record.path))).apply_async()
        for mark in (lambda body: body, tolerant)
    ]
    for result in results:
        wait_until(lambda r=result: ledger_of(cluster).read(r.parent.id).returned, what="a part")
        found = diagnose(cluster.app, result.parent.id)
        assert "member-lost" == found.kind
        assert (result.parent.results[1].id,) == found.missing
        assert ["fail-members"] == mend(cluster, result)

    strictly, tolerantly = (cluster.outcome(result).value for result in results)
    assert isinstance(strictly, ChordError)
    assert results[0].parent.results[1].id in str(strictly)
    assert 1 == tolerantly[0]
    assert tolerantly[1].startswith("ChordMemberLost")
    assert 1 == record.count("body")


def test_lost_member_is_sent_again_where_somebody_asks(cluster, record, backend_kind, clusters):
    cluster = clusters(backend_kind, settings={**ALONE, "chord_store_signatures": True})
    t = cluster.tasks
    nowhere = f"{cluster.stack.name}-nowhere"
    lost = chain(t.echo.s(2, record=record.path).set(queue=nowhere), t.add.s(1))
    result = chord([t.echo.s(1), lost, t.echo.s(4)], t.collect.s()).apply_async()
    group_id = result.parent.id
    wait_until(lambda: ledger_of(cluster).read(group_id).returned == 2, what="two parts")

    (told,) = repair(cluster.app, group_id, resend=True)
    assert ("resend", None) == (told.name, told.is_done)
    (action,) = repair(cluster.app, group_id, dry_run=False, resend=True)

    assert ("resend", True) == (action.name, action.is_done)
    with running_worker(cluster.config, concurrency=1, queues=[nowhere]):
        assert [1, 3, 4] == cluster.run(result)


def test_poller_lost(cluster, gate, backend_kind, monkeypatch):
    if backend_kind == "redis":
        pytest.skip("only chords on SQL have a poller")
    with monkeypatch.context() as patched:
        patched.setattr(safety_net, "send_unlock", lambda *_: None)
        result = waiting_chord(cluster, gate)

    assert "poller-lost" == kind_of(cluster, result)
    assert ["requeue"] == mend(cluster, result)

    received = f"Task celery.chord_unlock[{safety_net.unlock_id(result.parent.id)}] received"
    wait_until(lambda: received in cluster.worker.log_text(), what="the poller")
    assert "running" == kind_of(cluster, result)
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_part_lost(cluster, gate):
    result = waiting_chord(cluster, gate)
    second = result.parent.results[1].id
    # As if a worker had died between the two.
    cluster.app.backend.store_result(second, 2, states.SUCCESS)

    assert "part-lost" == kind_of(cluster, result)
    assert ["recount"] == mend(cluster, result)

    assert [1, 2] == cluster.run(result)
    gate.open()


def test_ready_not_fired(cluster, gate, record):
    result = waiting_chord(cluster, gate, cluster.tasks.collect.s(record=record.path))
    ledger = ledger_of(cluster)
    claim = ledger.claim(result.parent.id)
    done(cluster, gate, result)
    wait_until(lambda: ledger.read(result.parent.id).returned == 2, what="both parts")
    assert "running" == kind_of(cluster, result)
    ledger.release(claim)

    assert "ready-not-fired" == kind_of(cluster, result)
    assert ["fire"] == mend(cluster, result)

    assert [1, 2] == cluster.run(result)
    assert 1 == record.count("body")


def test_claim_expired(cluster, gate, record, monkeypatch):
    result = waiting_chord(cluster, gate, cluster.tasks.collect.s(record=record.path))
    ledger = ledger_of(cluster)
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 2)
    assert ledger.claim(result.parent.id)
    done(cluster, gate, result)
    wait_until(lambda: ledger.read(result.parent.id).claimed_until < time.time(), what="expiry")

    assert "claim-expired" == kind_of(cluster, result)
    assert ["fire"] == mend(cluster, result)

    assert [1, 2] == cluster.run(result)
    assert 1 == record.count("body")


def test_body_done(cluster, gate):
    result = waiting_chord(cluster, gate)
    ledger = ledger_of(cluster)
    claim = ledger.claim(result.parent.id)
    done(cluster, gate, result)
    wait_until(lambda: ledger.read(result.parent.id).returned == 2, what="both parts")
    cluster.app.backend.store_result(result.id, "its value", states.SUCCESS)
    ledger.release(claim)

    assert "body-done" == kind_of(cluster, result)
    assert ["forget"] == mend(cluster, result)

    assert "unknown" == kind_of(cluster, result)
    assert "its value" == cluster.run(result)


def test_size_missing(cluster, backend_kind):
    body = tolerant(cluster.tasks.collect.s().set(task_id=uuid()), timeout=60)
    ledger, group_id = ledger_of(cluster), uuid()
    # As if its producer had died before the last member; on SQL the header was a generator.
    header = [uuid(), uuid()] if backend_kind == "redis" else None
    ledger.open(group_id, header, pack_data(cluster.app, body), time.time() + 600, 60)

    found = diagnose(cluster.app, group_id)

    assert "size-missing" == found.kind
    # Its producer may still be sending.
    assert [] == repair(cluster.app, group_id)
    ledger.close(group_id)


def test_signals_tell_what_was_done(cluster, gate):
    heard = []

    def hear(sender, group_id, action, **_):
        heard.append((sender.main, group_id, action))

    result = waiting_chord(cluster, gate)
    cluster.app.backend.store_result(result.parent.results[1].id, 2, states.SUCCESS)
    signals.chord_repaired.connect(hear)
    try:
        repair(cluster.app, result.parent.id, dry_run=False)
    finally:
        signals.chord_repaired.disconnect(hear)
        gate.open()

    assert [(cluster.app.main, result.parent.id, "recount")] == heard


def test_broker_that_is_away_is_not_waited_for(cluster, gate):
    result = waiting_chord(cluster, gate)
    app = make_app(cluster.config, patched=True)
    app.conf.broker_url = "amqp://guest:secret@127.0.0.1:1//"

    started = time.monotonic()
    found = diagnose(app, result.parent.id)

    assert "unknown" == found.kind
    assert "127.0.0.1:1" in found.reason
    assert "cannot be reached" in found.reason
    assert "secret" not in found.reason
    assert BOUNDED > time.monotonic() - started
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_result_backend_that_is_away_is_not_waited_for(cluster):
    app = make_app(cluster.config, patched=True)
    scheme = cluster.app.conf.result_backend.partition("://")[0]
    app.conf.result_backend = f"{scheme}://me:secret@127.0.0.1:1/0"

    started = time.monotonic()
    with pytest.raises(CannotTell, match="cannot be read") as error, bounded_ledger(app) as ledger:
        ledger.group_ids()

    assert "127.0.0.1:1" in str(error.value)
    assert "secret" not in str(error.value)
    assert BOUNDED > time.monotonic() - started


def test_result_backend_that_is_silent_is_given_up(cluster):
    app = make_app(cluster.config, patched=True)
    scheme = cluster.app.conf.result_backend.partition("://")[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app.conf.result_backend = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0"

        started = time.monotonic()
        with pytest.raises(CannotTell), bounded_ledger(app) as ledger:
            ledger.group_ids()

    assert BOUNDED > time.monotonic() - started


def test_patches_are_installed_where_the_result_backend_is_away(cluster):
    scheme = cluster.app.conf.result_backend.partition("://")[0]
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    config["settings"]["result_backend"] = f"{scheme}://127.0.0.1:1/0"

    started = time.monotonic()
    make_app(config, patched=True)

    assert BOUNDED > time.monotonic() - started


def test_bounded_ledger_reads_what_the_other_wrote(cluster, gate):
    result = waiting_chord(cluster, gate)
    with bounded_ledger(cluster.app) as ledger:
        assert result.parent.id in ledger.group_ids()
        assert 1 == ledger.read(result.parent.id).returned
    gate.open()
    assert [1, 2] == cluster.run(result)


def test_app_without_a_ledger_says_so(cluster):
    cluster.app.conf.chord_ledger = False

    with pytest.raises(LedgerMissing, match="chord_ledger"):
        diagnose(cluster.app, "any")


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_watchdog_works_in_other_pools(clusters, backend_kind, pool, gate):
    if pool == "gevent":
        pytest.importorskip("gevent")
    cluster = clusters(backend_kind, settings=ALONE)
    t, queue = cluster.tasks, f"{cluster.stack.name}-{pool}"
    result = chord([t.echo.s(1), t.echo.s(2).set(queue=queue)], t.collect.s()).apply_async()
    ledger = ledger_of(cluster)
    wait_until(lambda: ledger.read(result.parent.id).returned == 1, what="a part")
    cluster.app.backend.store_result(result.parent.results[1].id, 2, states.SUCCESS)
    ledger.look_again(result.parent.id, 1.0)
    config = {**cluster.config, "settings": {**cluster.config["settings"]}}
    config["settings"]["chord_watchdog_interval"] = 0.2

    with running_worker(config, pool=pool, concurrency=1, queues=[f"{queue}-other"]):
        assert [1, 2] == cluster.run(result)
