"""Real chords, brought into each state that a diagnosis names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord, states
from kombu.utils.uuid import uuid

from chordguard import tolerant
from chordguard.ledger import access, claims
from chordguard.ledger.packing import pack_data
from chordguard.lifecycle import safety_net
from chordguard.recovery.evidence import examine
from tests.harness import Cluster, wait_until

if TYPE_CHECKING:
    from tests.conftest import Gate

#: Nobody mends anything unless it is asked to.
ALONE = {"chord_watchdog_interval": 0, "chord_unlock_first_delay": 600}


def ledger_of(cluster: Cluster) -> Any:
    return access.ledger_of(cluster.app.backend)


def waiting_chord(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    """Start a chord whose second member waits for the gate."""
    t = cluster.tasks
    header = [t.echo.s(1), t.wait_for_file.s(gate.path, 2)]
    result = chord(header, body or t.collect.s()).apply_async()
    first, second = result.parent.results
    wait_until(lambda: first.state == states.SUCCESS, what="the first member")
    wait_until(lambda: f"[{second.id}] received" in cluster.worker.log_text(), what="the second")
    wait_until(lambda: has_part(cluster, result), what="a part")
    return result


def has_part(cluster: Cluster, result: Any) -> bool:
    """Tell whether a part of a chord was counted, by Celery alone on Redis, too."""
    backend = cluster.app.backend
    if cluster.stack.backend == "redis":
        return bool(backend.client.exists(backend.get_key_for_group(result.parent.id, ".j")))
    return bool(ledger_of(cluster).read(result.parent.id).returned)


def member_lost(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    t = cluster.tasks
    nowhere = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
    result = chord([t.echo.s(1), nowhere], body or t.collect.s()).apply_async()
    wait_until(lambda: ledger_of(cluster).read(result.parent.id).returned == 1, what="a part")
    return result


def part_lost(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    """Store a result as if its worker had died before the part was counted."""
    result = waiting_chord(cluster, gate, body)
    cluster.app.backend.store_result(result.parent.results[1].id, 2, states.SUCCESS)
    return result


def ready_not_fired(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    result = waiting_chord(cluster, gate, body)
    with held(cluster, gate, result):
        pass
    return result


def body_done(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    result = waiting_chord(cluster, gate, body)
    with held(cluster, gate, result):
        cluster.app.backend.store_result(result.id, "its value", states.SUCCESS)
    return result


def claim_expired(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    result = waiting_chord(cluster, gate, body)
    ledger = ledger_of(cluster)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(claims, "CLAIM_SECONDS", 1)
        assert ledger.claim(result.parent.id)
    let_go(cluster, gate, result)
    wait_until(lambda: ledger.read(result.parent.id).claimed_until < time.time(), what="expiry")
    return result


def poller_lost(cluster: Cluster, gate: Gate, body: Any = None) -> Any:
    """Start a chord on SQL without its `celery.chord_unlock`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(safety_net, "send_unlock", lambda *_: None)
        return waiting_chord(cluster, gate, body)


def size_missing(cluster: Cluster, gate: Gate, body: Any = None, timeout: float = 0.5) -> Any:
    """Open a chord as if its producer had died before it sent the last member.

    On SQL the header was a generator.
    """
    body = tolerant((body or cluster.tasks.collect.s()).set(task_id=uuid()), timeout=timeout)
    header = [uuid(), uuid()] if cluster.stack.backend == "redis" else None
    packed = pack_data(cluster.app, body)
    group_id = uuid()
    ledger_of(cluster).open(group_id, header, packed, time.time() + 600, timeout)
    result = cluster.app.AsyncResult(body.id)
    result.parent = cluster.app.GroupResult(group_id, [])
    return result


@contextmanager
def held(cluster: Cluster, gate: Gate, result: Any) -> Iterator[None]:
    """Keep everybody from ending a chord until the block ends; all members are done then."""
    ledger = ledger_of(cluster)
    claim = ledger.claim(result.parent.id)
    let_go(cluster, gate, result)
    yield
    ledger.release(claim)


def let_go(cluster: Cluster, gate: Gate, result: Any) -> None:
    """Let the second member of a waiting chord end, and be counted."""
    gate.open()
    ledger = ledger_of(cluster)
    wait_until(lambda: ledger.read(result.parent.id).returned == 2, what="both parts")


#: How a chord gets into each state, and what mends it.
WAYS: dict[str, tuple[Callable[..., Any], str]] = {
    "ready-not-fired": (ready_not_fired, "fire"),
    "part-lost": (part_lost, "recount"),
    "member-lost": (member_lost, "fail-members"),
    "claim-expired": (claim_expired, "fire"),
    "size-missing": (size_missing, "fail-members"),
    "poller-lost": (poller_lost, "requeue"),
    "body-done": (body_done, "forget"),
}


def is_overdue(ledger: Any, group_id: str) -> bool:
    return examine(ledger, group_id).is_overdue
