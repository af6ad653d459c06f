from __future__ import annotations

import time

import pytest
from celery import Celery, chain, chord, group

from chordguard import progress, strict, tolerant
from chordguard.errors import LedgerMissing
from chordguard.ledger.access import ledger_of
from chordguard.ledger.tallies import Tally
from chordguard.lifecycle.progress import progress_of
from chordguard.lifecycle.settlement import Settlement
from chordguard.recovery.checkup import checkup
from chordguard.recovery.evidence import examine
from tests.harness import wait_until


def told(found):
    return found.state, found.total, found.done, found.failed


def ended(found):
    """Wait until the chord has ended; `found` returns its progress."""
    wait_until(lambda: found().has_ended, what="the end of the chord")
    return told(found())


def ids_of(result):
    return [result, result.parent.id, result.id]


def test_by_its_result_and_the_ids_of_header_and_body(cluster, gate):
    t, app = cluster.tasks, cluster.app
    header = [t.echo.s(1), t.fail.s(), t.wait_for_file.s(gate.path)]
    result = tolerant(chord(header, t.collect.s())).apply_async()
    wait_until(lambda: progress(result).done == 2, what="two members")

    for chord_ in ids_of(result):
        found = progress(chord_, app)
        assert ("running", 3, 2, 1) == told(found)
        assert result.parent.id == found.group_id
        assert found.percent == pytest.approx(200 / 3)
        assert found.rate
        assert found.eta
        assert not found.has_ended

    gate.open()
    cluster.run(result)
    assert ("tolerated", 3, 3, 1) == ended(lambda: progress(result))
    for chord_ in ids_of(result):
        found = progress(chord_, app)
        assert ("tolerated", 3, 3, 1) == told(found)
        assert (100.0, 0.0) == (found.percent, found.eta)
        assert found.started


def test_of_strict_chords(cluster):
    t = cluster.tasks
    good = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
    bad = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s())).apply_async()

    assert ("succeeded", 2, 2, 0) == ended(lambda: progress(good))
    assert ("failed", 2, 2, 1) == ended(lambda: progress(bad))


@pytest.mark.parametrize("kind", ["chain", "group", "chord", "generator", "nested group"])
def test_of_canvases(cluster, kind):
    t = cluster.tasks
    nested = [t.echo.s(1), chain(t.echo.s(2), group(t.echo.s(), t.echo.s()))]
    lazy = (t.echo.s(number) for number in range(3))
    bodies = {
        "chain": t.collect.s() | t.collect.s(),
        "group": group(t.collect.s(), t.collect.s()),
        "chord": chord([t.collect.s(), t.collect.s()], t.collect.s()),
    }
    header = lazy if kind == "generator" else nested
    result = chord(header, bodies.get(kind, t.collect.s())).apply_async()

    first = result
    while first.parent is not None:
        first = first.parent
    # A body that is a chord gives a result whose nearest header is its own.
    is_own = kind != "chord"
    for chord_ in [result, result.id] if is_own else [first.id, result.id]:
        assert "succeeded" == ended(lambda c=chord_: progress(c, cluster.app))[0]
    assert 3 == progress(first.id if kind != "chain" else result, cluster.app).total


def test_of_nested_chords(cluster, gate):
    t = cluster.tasks
    inner = chord([t.echo.s(1), t.wait_for_file.s(gate.path)], t.collect.s())
    inner_inner = chord([inner, t.echo.s(3)], t.collect.s())
    result = chord([t.echo.s(4), inner_inner], t.collect.s()).apply_async()
    app = cluster.app

    def nested():
        found = progress(result.parent.id, app, nested=True)
        return [
            told(found),
            *(told(n) for n in found.nested),
            *(told(n) for m in found.nested for n in m.nested),
        ]

    expected = [("running", 2, 1, 0), ("running", 2, 1, 0), ("running", 2, 1, 0)]
    wait_until(lambda: nested() == expected, what="three members")
    assert () == progress(result).nested

    gate.open()
    cluster.run(result)
    ended(lambda: progress(result))
    found = progress(result, nested=True)
    assert ["succeeded"] == [inner.state for inner in found.nested]


def test_member_that_is_lost_is_done_when_the_chord_is_settled(cluster):
    t, app = cluster.tasks, cluster.app
    nowhere = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
    result = tolerant(chord([t.echo.s(1), nowhere], t.collect.s())).apply_async()
    wait_until(lambda: progress(result).done == 1, what="the member")
    assert ("running", 2, 1, 0) == told(progress(result))

    # As an operator does it who gives the chord up.
    ledger = ledger_of(app.backend)
    found = examine(ledger, result.parent.id)
    checkup(ledger, found, settlement=Settlement.by_request())

    assert ("tolerated", 2, 2, 1) == ended(lambda: progress(result))


def test_of_what_is_no_chord_that_is_known(cluster):
    assert ("unknown", None, 0, 0) == told(progress("no-such-id", cluster.app))
    with pytest.raises(TypeError, match="expected an id or a chord's result"):
        progress(3, cluster.app)


def test_of_a_chord_that_the_ledger_does_not_know(cluster):
    t = cluster.tasks
    result = tolerant(chord([t.echo.s(1), t.fail.s()], t.collect.s())).apply_async()
    later = chord([t.echo.s(1), t.echo.s(2)], t.collect.s())
    later = later.freeze()
    cluster.run(result)
    ended(lambda: progress(result))
    ledger = ledger_of(cluster.app.backend)
    ledger.open(result.parent.id, None, None, 0.0, None)
    ledger.close(result.parent.id)
    if hasattr(ledger, "forget_ended"):
        ledger.forget_ended(2.0**40)

    assert ("tolerated", 2, 2, 1) == told(progress(result))
    assert ("unknown", None, 0, 0) == told(progress(result, may_be_slow=False))
    assert ("unknown", 2, 0, 0) == told(progress(later))


@pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
@pytest.mark.cluster(settings={"chord_ledger": False})
class TestWithoutALedger:
    def test_members_are_read(self, cluster, gate):
        t = cluster.tasks
        header = [t.echo.s(1), t.echo.s(2), t.wait_for_file.s(gate.path)]
        result = chord(header, t.collect.s()).apply_async()

        wait_until(lambda: progress(result).done == 2, what="two members")
        assert ("running", 3, 2, 0) == told(progress(result))
        assert ("running", 3, 2, 0) == told(progress(result.parent))
        gate.open()
        cluster.run(result)
        assert ("succeeded", 3, 3, 0) == told(progress(result))
        assert ("ready", 3, 3, 0) == told(progress(result.parent))

    def test_error_says_so(self, cluster):
        t = cluster.tasks
        result = strict(chord([t.echo.s(1), t.fail.s()], t.collect.s())).apply_async()

        with pytest.raises(LedgerMissing):
            progress(result, may_be_slow=False)
        with pytest.raises(LedgerMissing):
            progress(result.id, cluster.app)
        cluster.outcome(result)
        assert ("failed", 2, 2, 1) == told(progress(result))


@pytest.mark.parametrize("backend_kind", ["sqlite"])
def test_of_another_result_backend(backend_kind):
    app = Celery("other", broker="memory://", backend="cache+memory://", set_as_current=False)
    result = app.GroupResult("group", [app.AsyncResult("a"), app.AsyncResult("b")])
    app.backend.store_result("a", 1, "SUCCESS")

    assert ("running", 2, 1, 0) == told(progress(result))


def test_rate_and_eta():
    started = time.time() - 10
    live = progress_of(Tally("id", 15, 5, 0, started, started + 8))
    assert (0.5, 20.0, 2.0) == pytest.approx((live.rate, live.eta, live.idle), rel=0.05)

    done = progress_of(Tally("id", 10, 10, 0, 1000.0, 1005.0, "succeeded"))
    assert (2.0, 0.0, 100.0) == (done.rate, done.eta, done.percent)

    new = progress_of(Tally("id", None, 0, 0, 1000.0, 1000.0))
    assert (None, None, None) == (new.rate, new.eta, new.percent)
    assert 100.0 == progress_of(Tally("id", 0, 0, 0, 1000.0, 1000.0)).percent
