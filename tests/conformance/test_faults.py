"""Cells of the table for which something has to go wrong on the way, not a task alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group

from chordguard import tolerant
from chordguard.patches import registry
from chordguard.patches.database import wide_results
from tests import result_tables
from tests.chords import stuck, troubled
from tests.chords.traces import traces
from tests.conformance.catalogue import ALL, HANGS, MARIADB, REDIS, RIGHT, SQL, SQLITE, WRONG
from tests.harness import ROOT, WITHOUT_LEDGER, Stack, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Cluster

#: A watchdog and a safety net that come soon; stock knows neither.
SETTINGS = {"chord_watchdog_interval": 0.3, "chord_unlock_first_delay": 1}
#: Seconds without anything but polling after which a canvas on stock is said to hang.
QUIET = 1.2
#: Seconds in which what stock does too soon has happened.
SOON = 2.0


def cells(*backends: str, others: tuple[str, ...] = ()) -> Any:
    """Order the cells of a row; those of a cluster run in one process.

    `others` are backends of which what Celery does alone is not on record.
    """
    return pytest.mark.parametrize(
        ("patched", "backend_kind"),
        [
            pytest.param(
                patched,
                backend,
                id=f"{'patched' if patched else 'stock'}-{backend}",
                marks=[
                    pytest.mark.xdist_group(f"faults-{patched}-{backend}"),
                    *([] if patched else [pytest.mark.stock]),
                    *([pytest.mark.nightly] if backend in others else []),
                ],
            )
            for backend in (*backends, *others)
            for patched in ((True,) if backend in others else (False, True))
        ],
    )


@pytest.fixture
def cluster(clusters, backend_kind, patched) -> Cluster:
    return clusters(backend_kind, patched=patched, settings=SETTINGS, concurrency=3)


@pytest.fixture
def judge_end(judge, cluster, backend_kind, patched) -> Callable[..., None]:
    """Return a function that sees how a chord ends, and judges it."""

    def judge_end(row: str, result: Any, expected: Any) -> None:
        outcome = cluster.outcome(result, quiet=None if patched else QUIET)
        value = RIGHT if outcome.value == expected else WRONG
        judge(row, backend_kind, patched, HANGS if outcome.hung else value, outcome)

    return judge_end


@cells(REDIS)
def test_member_that_runs_twice(cluster, judge, backend_kind, patched, gate, record):
    """B4: a member that runs twice, with another result, counts once."""
    result = stuck.waiting_chord(cluster, gate, cluster.tasks.collect.s(record=record.path))
    first = cluster.app.backend.get_key_for_task(result.parent.results[0].id)
    cluster.app.backend.delete(first)
    troubled.run_again(cluster, result, 99, record)
    if not patched:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: record.count("body"), SOON, "the body, early")
    cell = WRONG if record.count("body") else RIGHT
    gate.open()
    cluster.outcome(result)
    judge("B4 member that runs twice", backend_kind, patched, cell)


@cells(*SQL, others=WITHOUT_LEDGER)
def test_retry_that_is_stored_late(cluster, judge_end, gate):
    """B5: a RETRY that is stored after the SUCCESS does not replace it."""
    result = troubled.late_retry(cluster, gate)

    judge_end("B5 RETRY stored after SUCCESS", result, [1, 2])


@cells(REDIS)
def test_part_that_is_never_returned(cluster, judge_end, gate):
    """B6: the part of a member whose result is stored is counted from that."""
    result = stuck.waiting_chord(cluster, gate)
    troubled.lose_parts(cluster, result)
    gate.open()

    judge_end("B6 part lost to an error of Redis", result, [1, 2])


@cells(*ALL, others=WITHOUT_LEDGER)
def test_member_that_is_lost(cluster, judge_end):
    """B7: a member that never ends, as when its worker is killed, is given up in time."""
    t = cluster.tasks
    nowhere = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
    body = tolerant(t.collect_types.s(), timeout=1)
    result = chord([t.echo.s(1), nowhere], body).apply_async()

    judge_end("B7 member lost with its worker", result, ["int", "str"])


@cells(REDIS)
def test_size_that_has_expired(cluster, judge_end, gate):
    """B8: a chord whose size is gone from Redis ends all the same."""
    result = stuck.waiting_chord(cluster, gate)
    cluster.app.backend.client.delete(troubled.key_of(cluster, result, ".s"))
    gate.open()

    judge_end("B8 chord outlives its keys", result, [1, 2])


@cells(REDIS)
def test_claim_of_a_dead_worker(cluster, judge_end, gate):
    """B11: a chord whose ender died is ended by another."""
    result = stuck.waiting_chord(cluster, gate)
    cluster.app.backend.client.set(troubled.key_of(cluster, result, ".c"), "dead", ex=1)
    gate.open()

    judge_end("B11 ender of the chord killed", result, [1, 2])


@cells(REDIS)
def test_garbage_collected_while_subscribing(cluster, judge, backend_kind, patched):
    """C9: a chord is started although a result is collected on the way."""
    producer = troubled.Producer(cluster)
    cell = HANGS if producer.result is None else RIGHT
    judge("C9 result collected while subscribing", backend_kind, patched, cell)


@cells(*ALL, others=WITHOUT_LEDGER)
def test_chord_that_cannot_be_sent(cluster, judge, backend_kind, patched):
    """C3: a chord of which a member cannot be encoded leaves nothing behind."""
    ids = troubled.send_in_vain(troubled.broken(cluster.tasks, 1))
    wait_until(cluster.is_idle, what="idle worker")
    if patched:
        wait_until(lambda: not traces(cluster, *ids), timeout=40, what="no traces")
    cluster._has_hung = not patched
    cell = WRONG if traces(cluster, *ids) else RIGHT
    judge("C3 chord half sent", backend_kind, patched, cell)


@cells(*ALL, others=WITHOUT_LEDGER)
def test_generator_that_raises(cluster, judge, backend_kind, patched):
    """B17: the error of a generator that raises after its first task reaches the caller."""
    canvas = troubled.raising_header(cluster, 1)
    try:
        cell = WRONG if cluster.run(canvas) == [0] else RIGHT
    except LookupError:
        cell = RIGHT
    judge("B17 generator header that raises", backend_kind, patched, cell)


@cells(SQLITE)
def test_poller_behind_a_headers_exchange(clusters, judge, backend_kind, patched):
    """C5: the poller is routed as the body is."""
    fix = registry["routed_unlock"]
    with troubled.producer_by_headers(clusters, fix, patched=patched) as cluster:
        quiet = None if patched else 2.0
        outcome = cluster.outcome(troubled.routed_by_headers(cluster.app), quiet=quiet)
    cell = HANGS if outcome.hung else RIGHT
    judge("C5 poller behind a headers exchange", backend_kind, patched, cell, outcome)


REVOKE = """
import json, sys
from tests.app_factory import make_app
config, patched, group_id = json.loads(sys.argv[1])
app = make_app(config, patched)
app.GroupResult.restore(group_id, app=app).revoke()
"""


@cells(*ALL, others=WITHOUT_LEDGER)
def test_group_result_in_another_process(cluster, judge, backend_kind, patched):
    """What `GroupResult.save` keeps of a header can be revoked by another process."""
    t = cluster.tasks
    later = f"{cluster.stack.name}-later"
    header = [t.echo.s(1), t.echo.s(2).set(queue=later)]
    result = chord(header, tolerant(t.collect_types.s())).apply_async()
    wait_until(lambda: result.parent.results[0].state == "SUCCESS", what="the first member")
    result.parent.save()

    arguments = json.dumps([cluster.config, patched, result.parent.id])
    subprocess.run([sys.executable, "-c", REVOKE, arguments], check=True, cwd=ROOT)
    cluster.app.control.add_consumer(later, destination=[cluster.worker.hostname])

    outcome = cluster.outcome(result, quiet=None if patched else QUIET)
    ended = RIGHT if outcome.value == ["int", "TaskRevokedError"] else WRONG
    cell = HANGS if outcome.hung else ended
    judge("field saved group, revoked by another process", backend_kind, patched, cell, outcome)


def counting_keys(cluster: Cluster) -> set[str]:
    """Return the keys on which chords are counted, of groups that they contain, too."""
    client = cluster.app.backend.client
    keys = (key.decode() for key in client.scan_iter(f"{cluster.stack.name}:*", count=1000))
    return {
        key
        for key in keys
        if key.endswith((".j", ".s", ".t", ".d", ".chordguard"))
        # The parts of a failed chord can be read for some minutes.
        and not (key.endswith(".j") and 0 < client.ttl(key) <= 300)
    }


@cells(REDIS)
@pytest.mark.parametrize("kind", ["failed", "nested"])
def test_keys_of_an_ended_chord(cluster, judge, backend_kind, patched, kind):
    """D1: a chord that has ended leaves no keys that stay."""
    t = cluster.tasks
    nested = [
        chain(t.echo.s(1), group(t.echo.s(), t.echo.s())),
        chord([t.echo.s(2), t.echo.s(3)], t.collect.s()),
        group(t.echo.s(4), t.echo.s(5)),
    ]
    header = {"failed": [t.echo.s(1), t.fail.s()], "nested": nested}[kind]
    before = counting_keys(cluster)
    cluster.outcome(chord(header, t.collect.s()).apply_async())

    def left() -> set[str]:
        return counting_keys(cluster) - before

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not left(), 3 if patched else 0.5, "no keys")
    cell = WRONG if left() else RIGHT
    judge(f"D1 keys of a {kind} chord", backend_kind, patched, cell, left())


@pytest.mark.parametrize("backend_kind", [MARIADB])
@pytest.mark.parametrize(
    "patched",
    [pytest.param(False, id="stock", marks=pytest.mark.stock), pytest.param(True, id="patched")],
)
def test_long_result(servers, require, judge, backend_kind, patched, monkeypatch):
    """D2: a result of more than 64 KiB is stored whole."""
    require("redis", backend_kind)
    monkeypatch.setattr(wide_results, "_limits", {})
    with contextlib.closing(Stack(servers, backend_kind, "redis")) as stack:
        settings = {"database_engine_options": result_tables.LENIENT}
        backend = result_tables.backend_on(stack, patched, **settings)
        result_tables.new_tables(stack, backend)
        try:
            cell = RIGHT if result_tables.stored(backend) == result_tables.LONG else WRONG
        except Exception:
            cell = WRONG
    judge("D2 result over 64 KiB", backend_kind, patched, cell)


@cells(*ALL, others=WITHOUT_LEDGER)
def test_delay_of_a_chord(cluster, judge, backend_kind, patched):
    """D10: countdown delays the header and nothing else."""
    result, etas = troubled.start_delayed(cluster.tasks, "countdown", 1)
    assert [1, 2] == cluster.run(result)[0]
    cell = RIGHT if etas["tests.echo"] is not None else WRONG
    judge("D10 chord with a countdown", backend_kind, patched, cell)
