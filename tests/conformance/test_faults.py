"""Cells of the table for which something has to go wrong on the way, not a task alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group

from chordguard import tolerant
from chordguard._patch import celery_5_7, celery_version, registry
from tests.conformance.catalogue import ALL, HANGS, MARIADB, REDIS, RIGHT, SQL, SQLITE, WRONG
from tests.harness import Stack, wait_until
from tests.patches.canvas import test_delayed_headers as delayed_headers
from tests.patches.canvas import test_generator_errors as generator_errors
from tests.patches.canvas import test_half_sent_chords as half_sent_chords
from tests.patches.database import test_atomic_results as atomic_results
from tests.patches.database import test_routed_unlock as routed_unlock
from tests.patches.database import test_wide_results as wide_results
from tests.patches.redis import test_collected_results as collected_results
from tests.patches.redis import test_counted_parts as counted_parts
from tests.traces import traces

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Cluster

#: A watchdog and a safety net that come soon; stock knows neither.
SETTINGS = {"chord_watchdog_interval": 0.3, "chord_unlock_first_delay": 1}
#: Seconds without anything but polling after which a canvas on stock is said to hang.
QUIET = 1.2

before_5_7 = celery_version() < celery_5_7


def cells(*backends: str) -> Any:
    """Order the cells of a row; those of a cluster run in one process."""
    return pytest.mark.parametrize(
        ("patched", "backend_kind"),
        [
            pytest.param(
                patched,
                backend,
                id=f"{'patched' if patched else 'stock'}-{backend}",
                marks=pytest.mark.xdist_group(f"faults-{patched}-{backend}"),
            )
            for backend in backends
            for patched in (False, True)
        ],
    )


@pytest.fixture
def cluster(clusters, backend_kind, patched) -> Cluster:
    return clusters(backend_kind, patched=patched, settings=SETTINGS, concurrency=3)


@pytest.fixture
def judge(note, cluster, backend_kind, patched) -> Callable[..., None]:
    """Return a function that sees how a chord ends, and notes it."""

    def judge(row: str, result: Any, expected: Any, stock: str) -> None:
        outcome = cluster.outcome(result, quiet=None if patched else QUIET)
        value = RIGHT if outcome.value == expected else WRONG
        cell = HANGS if outcome.hung else value
        note(row, backend_kind, patched, cell)
        assert cell == (RIGHT if patched else stock), outcome

    return judge


@cells(REDIS)
def test_member_that_runs_twice(cluster, note, backend_kind, patched, gate, record):
    """B4: a member that runs twice, with another result, counts once."""
    result = counted_parts.waiting_chord(cluster, gate, record)
    first = cluster.app.backend.get_key_for_task(result.parent.results[0].id)
    cluster.app.backend.delete(first)
    counted_parts.TestPartsThatComeTwice().again(cluster, result, 99, record)
    counted_twice = before_5_7 and not patched
    if counted_twice:
        wait_until(lambda: record.count("body"), what="the body, early")
    assert bool(record.count("body")) == counted_twice
    gate.open()
    cell = WRONG if counted_twice else RIGHT
    note("B4 member that runs twice", backend_kind, patched, cell)
    assert cell == (WRONG if before_5_7 and not patched else RIGHT)
    cluster.outcome(result)


@cells(*SQL)
def test_retry_that_is_stored_late(cluster, judge, gate):
    """B5: a RETRY that is stored after the SUCCESS does not replace it."""
    result = atomic_results.late_retry(cluster, gate)

    judge("B5 RETRY stored after SUCCESS", result, [1, 2], HANGS if before_5_7 else RIGHT)


@cells(REDIS)
def test_part_that_is_never_returned(cluster, judge, gate):
    """B6: the part of a member whose result is stored is counted from that."""
    result = counted_parts.waiting_chord(cluster, gate)
    counted_parts.lose_parts(cluster, result)
    gate.open()

    judge("B6 part lost to an error of Redis", result, [1, 2], HANGS)


@cells(*ALL)
def test_member_that_is_lost(cluster, judge):
    """B7: a member that never ends, as when its worker is killed, is given up in time."""
    t = cluster.tasks
    nowhere = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
    body = tolerant(t.collect_types.s(), timeout=1)
    result = chord([t.echo.s(1), nowhere], body).apply_async()

    judge("B7 member lost with its worker", result, ["int", "str"], HANGS)


@cells(REDIS)
def test_size_that_has_expired(cluster, judge, gate):
    """B8: a chord whose size is gone from Redis ends all the same."""
    result = counted_parts.waiting_chord(cluster, gate)
    cluster.app.backend.client.delete(counted_parts.key_of(cluster, result, ".s"))
    gate.open()

    judge("B8 chord outlives its keys", result, [1, 2], HANGS)


@cells(REDIS)
def test_claim_of_a_dead_worker(cluster, judge, gate):
    """B11: a chord whose ender died is ended by another."""
    result = counted_parts.waiting_chord(cluster, gate)
    cluster.app.backend.client.set(counted_parts.key_of(cluster, result, ".c"), "dead", ex=1)
    gate.open()

    judge("B11 ender of the chord killed", result, [1, 2], RIGHT if before_5_7 else HANGS)


@cells(REDIS)
def test_garbage_collected_while_subscribing(cluster, note, backend_kind, patched):
    """C9: a chord is started although a result is collected on the way."""
    producer = collected_results.Producer(cluster)
    cell = HANGS if producer.result is None else RIGHT
    note("C9 result collected while subscribing", backend_kind, patched, cell)
    shows = registry["collected_results"].is_needed() and not patched
    assert cell == (HANGS if shows else RIGHT)


@cells(*ALL)
def test_chord_that_cannot_be_sent(cluster, note, backend_kind, patched):
    """C3: a chord of which a member cannot be encoded leaves nothing behind."""
    ids = half_sent_chords.send(half_sent_chords.broken(cluster.tasks, 1))
    wait_until(cluster.is_idle, what="idle worker")
    if patched:
        wait_until(lambda: not traces(cluster, *ids), timeout=40, what="no traces")
    cell = WRONG if traces(cluster, *ids) else RIGHT
    note("C3 chord half sent", backend_kind, patched, cell)
    assert cell == (RIGHT if patched else WRONG)
    cluster._has_hung = not patched


@cells(*ALL)
def test_generator_that_raises(cluster, note, backend_kind, patched):
    """B17: the error of a generator that raises after its first task reaches the caller."""
    canvas = generator_errors.canvas(cluster, 1)
    try:
        cell = WRONG if cluster.run(canvas) == [0] else RIGHT
    except LookupError:
        cell = RIGHT
    note("B17 generator header that raises", backend_kind, patched, cell)
    assert cell == (RIGHT if patched else WRONG)


@cells(SQLITE)
def test_poller_behind_a_headers_exchange(clusters, note, backend_kind, patched):
    """C5: the poller is routed as the body is."""
    fix = registry["routed_unlock"]
    with routed_unlock.producer_by_headers(clusters, fix, patched=patched) as cluster:
        quiet = None if patched else 2.0
        outcome = cluster.outcome(routed_unlock.canvas(cluster.app), quiet=quiet)
    cell = HANGS if outcome.hung else RIGHT
    note("C5 poller behind a headers exchange", backend_kind, patched, cell)
    assert cell == (HANGS if before_5_7 and not patched else RIGHT), outcome


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
def test_keys_of_an_ended_chord(cluster, note, backend_kind, patched, kind):
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
    note(f"D1 keys of a {kind} chord", backend_kind, patched, cell)
    stock = (WRONG,) if kind == "failed" else (WRONG, RIGHT)
    assert cell in ((RIGHT,) if patched else stock), left()


@pytest.mark.parametrize("backend_kind", [MARIADB])
@pytest.mark.parametrize("patched", [False, True], ids=["stock", "patched"])
def test_long_result(servers, require, note, backend_kind, patched, monkeypatch):
    """D2: a result of more than 64 KiB is stored whole."""
    require("redis", backend_kind)
    monkeypatch.setattr(wide_results.wide_results, "_limits", {})
    with contextlib.closing(Stack(servers, backend_kind, "redis")) as stack:
        settings = {"database_engine_options": wide_results.LENIENT}
        backend = wide_results.backend_on(stack, patched, **settings)
        wide_results.new_tables(stack, backend)
        try:
            cell = RIGHT if wide_results.stored(backend) == wide_results.LONG else WRONG
        except Exception:
            cell = WRONG
    note("D2 result over 64 KiB", backend_kind, patched, cell)
    assert cell == (RIGHT if patched else WRONG)


@cells(*ALL)
def test_delay_of_a_chord(cluster, note, backend_kind, patched):
    """D10: countdown delays the header and nothing else."""
    result, etas = delayed_headers.start(cluster.tasks, "countdown", 1)
    cell = RIGHT if etas["tests.echo"] is not None else WRONG
    note("D10 chord with a countdown", backend_kind, patched, cell)
    assert cell == (WRONG if before_5_7 and not patched else RIGHT)
    assert [1, 2] == cluster.run(result)
