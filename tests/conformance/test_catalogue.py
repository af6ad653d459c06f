"""Every cell of the conformance table: stock as the catalogue says, patched always right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chord
from celery.exceptions import ChordError

from chordguard import install_patches, strict
from tests import tasks as declared_tasks
from tests.conformance import catalogue
from tests.conformance.catalogue import ALL, RAISES, REDIS, RIGHT, SQL, SQLITE, WRONG
from tests.conformance.cells import once, run_all, run_strict
from tests.harness import WITH_OWN_LEDGER, WITHOUT_LEDGER, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.conformance.catalogue import Scenario
    from tests.harness import Cluster

#: Each chord has to end by its last part: the safety net on SQL comes too late to help.
TOLERANT = {"chord_propagate_errors": False, "chord_unlock_first_delay": 300}
#: Chords are counted on Redis and polled on SQL as by Celery alone.
UNCOUNTED = {"chord_ledger": False}
#: Only the ledger knows of which chord a task is a member whose message cannot be read.
READABLE = [scenario for scenario in catalogue.TOLERANT if scenario.defect != "A16"]
LOST_AFTER = 4
#: Seconds without anything but polling after which a canvas on stock is said to hang.
QUIET = 1.5
#: The same where polls are counted: 5.2.7 makes about one a second.
QUIET_BOUNDED = 6.0
#: The safety net of a chord that is lost: each look is a poll.
ASKED = {**TOLERANT, "chord_unlock_first_delay": 0.2, "chord_unlock_retry_delay": 0.2}
BOUNDED = {**ASKED, "chord_unlock_max_retries": LOST_AFTER}
ANNOTATED = {
    **ASKED,
    "task_annotations": {"celery.chord_unlock": {"max_retries": LOST_AFTER}},
    "result_chord_join_timeout": 1e-6,
}

STOCK = pytest.param(False, id="stock", marks=pytest.mark.stock)
PATCHED = pytest.param(True, id="patched")
HALVES = [STOCK, PATCHED]


def cases(
    scenarios: tuple[Scenario, ...], halves: Sequence[Any] = HALVES, own: Sequence[str] = ()
) -> Any:
    """Order the cells by cluster, so that each cluster is started once."""
    return pytest.mark.parametrize(
        ("patched", "backend_kind", "scenario"),
        [
            pytest.param(
                *half.values,
                backend,
                scenario,
                id=f"{half.id}-{backend}-{scenario}",
                # The canvases of a cluster run together, the clusters beside each other.
                marks=[*half.marks, pytest.mark.xdist_group(f"conformance-{half.id}-{backend}")],
            )
            for backend in (*ALL, *own)
            # Without the patches nobody reads where the ledger is.
            for half in ([PATCHED] if backend in own else halves)
            for scenario in scenarios
            if scenario.has_cell(backend)
        ],
    )


#: The settings of the workers that canvases are run by, the canvases, and how long none moves.
KINDS = {
    "tolerant": (TOLERANT, catalogue.TOLERANT, QUIET),
    "asked": (ASKED, catalogue.ASKED, QUIET_BOUNDED),
    "bounded": (BOUNDED, catalogue.BOUNDED, QUIET_BOUNDED),
    "annotated": (ANNOTATED, catalogue.ANNOTATED, QUIET_BOUNDED),
}


@once
def outcomes(
    clusters: Callable[..., Cluster], backend: str, patched: bool, which: str
) -> dict[str, Any]:
    return run(clusters, backend, patched, which, KINDS[which][1])


def run(
    clusters: Callable[..., Cluster],
    backend: str,
    patched: bool,
    which: str,
    scenarios: Sequence[Scenario],
) -> dict[str, Any]:
    settings, _, quiet = KINDS[which]
    cluster = clusters(backend, patched=patched, settings=settings)
    # Where patches act, polling alone still is progress towards a bound.
    return run_all(cluster, scenarios, backend, None if patched else quiet)


@pytest.fixture
def check(
    clusters: Callable[..., Cluster], judge: Callable[..., None], backend_kind: str, patched: bool
) -> Callable[..., None]:
    """Return a function that judges one of the canvases that ran together."""

    def check(which: str, scenario: Scenario) -> None:
        cell, outcome = outcomes(clusters, backend_kind, patched, which)[str(scenario)]
        judge(str(scenario), backend_kind, patched, cell, outcome)

    return check


@cases(catalogue.TOLERANT, own=WITH_OWN_LEDGER)
def test_tolerant_chord(check, scenario):
    """A canvas whose failures are to be tolerated ends as the catalogue says."""
    check("tolerant", scenario)


@once
def strict_outcomes(
    clusters: Callable[..., Cluster],
    backend: str,
    patched: bool,
    which: str,
    folder: Callable[[str], Path],
) -> dict[str, Any]:
    settings = catalogue.ERRBACKS_ONCE if patched else None
    cluster = clusters(backend, patched=patched, settings=settings)
    quiet = None if patched else QUIET
    return run_strict(cluster, getattr(catalogue, which), backend, quiet, folder("errbacks"))


@cases(catalogue.STRICT, own=WITH_OWN_LEDGER)
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_failing_chord(clusters, judge, backend_kind, patched, scenario, tmp_path_factory):
    """A chord that fails calls its errback once for each result, its error names who failed."""
    ended = strict_outcomes(clusters, backend_kind, patched, "STRICT", tmp_path_factory.mktemp)
    cell, outcome = ended[str(scenario)]
    judge(str(scenario), backend_kind, patched, cell, outcome)


@cases(catalogue.TOLERANT, [PATCHED], WITH_OWN_LEDGER)
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_strict_chord(clusters, judge, backend_kind, patched, scenario, tmp_path_factory):
    """A canvas whose failures are not to be tolerated fails, and calls its errback once."""
    ended = strict_outcomes(clusters, backend_kind, patched, "TOLERANT", tmp_path_factory.mktemp)
    cell, outcome = ended[str(scenario)]
    judge(f"{scenario}, strict", backend_kind, patched, cell, outcome)


@pytest.mark.parametrize(
    "backend_kind",
    [
        pytest.param(backend, marks=pytest.mark.xdist_group(f"conformance-uncounted-{backend}"))
        for backend in (REDIS, SQLITE)
    ],
)
class TestWithoutLedger:
    """The rows that a ledger alone closes stand in `test_faults`."""

    def test_tolerant_chords(self, clusters, backend_kind):
        cluster = clusters(backend_kind, settings={**TOLERANT, **UNCOUNTED})

        judged = run_all(cluster, READABLE, backend_kind, quiet=None)

        assert {} == not_right(judged)

    @pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
    def test_failing_chords(self, clusters, backend_kind, tmp_path):
        settings = {**UNCOUNTED, **catalogue.ERRBACKS_ONCE}
        cluster = clusters(backend_kind, settings=settings)

        scenarios = (*catalogue.STRICT, *READABLE)

        judged = run_strict(cluster, scenarios, backend_kind, None, tmp_path)

        assert {} == not_right(judged)


def not_right(judged: dict[str, Any]) -> dict[str, Any]:
    return {row: outcome for row, (cell, outcome) in judged.items() if cell != RIGHT}


@cases(catalogue.ASKED)
def test_asked_chord(check, scenario):
    """A chord that is started with a bound of its own ends as the catalogue says."""
    check("asked", scenario)


@cases(catalogue.BOUNDED)
def test_bounded_chord(check, scenario):
    """A chord that the setting bounds ends as the catalogue says."""
    check("bounded", scenario)


@cases(catalogue.ANNOTATED)
def test_annotated_chord(check, scenario):
    """A chord that an annotation bounds ends as the catalogue says."""
    check("annotated", scenario)


@pytest.mark.parametrize("backend_kind", ALL)
@pytest.mark.parametrize("patched", HALVES)
def test_getting_the_value_of_a_tolerated_chord(clusters, judge, backend_kind, patched):
    """A1c: `get()` returns the body's value; stock raises the header task's error."""
    cluster = clusters(backend_kind, patched=patched, settings=TOLERANT)
    t = cluster.tasks
    result = chord([t.echo.s(1), t.fail.s()], t.collect.s()).apply_async()
    try:
        outcome = RIGHT if [1, catalogue.BOOM] == result.get(timeout=20) else WRONG
    except (ValueError, ChordError):
        # That of the header task, or the body's, whichever is read first.
        outcome = RAISES
    judge("A1c get() of a tolerated chord", backend_kind, patched, outcome)


@pytest.mark.parametrize("backend_kind", ALL)
@pytest.mark.parametrize("patched", HALVES)
def test_strict_chord_with_an_old_errback(clusters, judge, backend_kind, patched, record):
    """With default settings a failed header task fails the chord; the errback runs once."""
    cluster = clusters(backend_kind, patched=patched)
    t = cluster.tasks
    body = t.collect.s().on_error(t.errback_old.s(record=record.path))
    outcome = cluster.outcome(chord([t.echo.s(1), t.fail.s()], body))
    fails = outcome.state == "FAILURE" and type(outcome.value).__name__ == "ChordError"
    judge("A1 strict: fails as stock", backend_kind, patched, RIGHT if fails else WRONG, outcome)
    wait_until(lambda: record.count("errback_old"), what="errback")
    assert 1 == record.count("errback_old")


@pytest.fixture
def eager_app(patched: bool) -> Iterator[Celery]:
    app = Celery("eager", set_as_current=False)
    app.conf.update(task_always_eager=True, result_backend="cache+memory://")
    declared_tasks.register(app)
    if patched:
        install_patches(app)
    yield app
    app.close()


@pytest.mark.parametrize("patched", HALVES)
def test_strict_eager_chord(eager_app, judge, patched, record):
    """A13: a failed header task gives a failed result and calls the errback; stock raises."""
    t = declared_tasks.named(eager_app)
    body = t.collect.s().on_error(t.errback_old.s(record=record.path))
    try:
        result = chord([t.echo.s(1), t.fail.s()], body, app=eager_app).apply_async()
        outcome = RIGHT if (result.state, record.count("errback_old")) == ("FAILURE", 1) else WRONG
    except ValueError:
        outcome = RAISES
    judge("A13 eager, strict", "eager", patched, outcome)


@pytest.mark.parametrize("patched", HALVES)
def test_tolerant_eager_chord(eager_app, judge, patched):
    """A13: an eager chord tolerates what one on a worker tolerates."""
    eager_app.conf.chord_propagate_errors = False
    t = declared_tasks.named(eager_app)
    try:
        canvas = chord([t.echo.s(1), t.fail.s()], t.collect.s(), app=eager_app)
        outcome = RIGHT if canvas.apply_async().get() == [1, catalogue.BOOM] else WRONG
    except ValueError:
        outcome = RAISES
    judge("A13 eager, tolerant", "eager", patched, outcome)


@pytest.mark.nightly
@pytest.mark.parametrize("backend_kind", WITHOUT_LEDGER)
def test_getting_values_without_a_ledger(clusters, backend_kind):
    """`get()` returns the body's value, or raises the error of the member."""
    t = clusters(backend_kind, settings=TOLERANT).tasks
    canvas = chord([t.echo.s(1), t.fail.s()], t.collect.s())

    assert [1, catalogue.BOOM] == canvas.apply_async().get(timeout=20)
    with pytest.raises(ValueError, match="boom"):
        strict(canvas).apply_async().get(timeout=20)


#: Members of the header whose reads are counted.
MEMBERS = 60
#: Reads for each member that count as linear. Redis hands over a result for each key that is
#: read; on SQL one statement reads hundreds.
LINEAR = {REDIS: 4, **dict.fromkeys(SQL, 1)}


@pytest.mark.parametrize("backend_kind", ALL)
@pytest.mark.parametrize("patched", HALVES)
def test_waiting_reads_each_member_a_few_times(clusters, judge, backend_kind, patched, monkeypatch):
    """C8: waiting for a chord reads its members' results O(N) times; stock O(N) per event."""
    # A consumer of its own: one that follows other results, too, reads in another way.
    cluster = clusters(backend_kind, patched=patched, shared_by="waiting")
    t = cluster.tasks
    # They get ready one after the other, over several of the intervals in which stock reads.
    header = [t.slow.s(i, 0.15) for i in range(MEMBERS)]
    canvas = chord(header, t.tsum.s())
    reads = reads_of(cluster.app.backend, monkeypatch)
    result = canvas.apply_async()
    assert sum(range(MEMBERS)) == result.get(timeout=30)
    outcome = RIGHT if sum(reads) <= LINEAR[backend_kind] * MEMBERS else WRONG
    judge("C8 waiting is linear", backend_kind, patched, outcome, sum(reads))


@pytest.mark.parametrize("backend_kind", ALL)
@pytest.mark.parametrize("patched", HALVES)
def test_progress_of_a_header_reads_no_member(
    clusters, judge, backend_kind, patched, monkeypatch, gate
):
    """C11: the ledger knows how many members of a live chord did well; stock reads each."""
    cluster = clusters(backend_kind, patched=patched, shared_by="waiting")
    t = cluster.tasks
    header = [*(t.echo.s(i) for i in range(MEMBERS)), t.wait_for_file.s(gate.path)]
    result = chord(header, t.collect.s()).apply_async()
    wait_until(lambda: result.parent.completed_count() == MEMBERS, what="the members")
    for member in result.parent.results:
        member._cache = None
    reads = reads_of(cluster.app.backend, monkeypatch)
    counted = result.parent.completed_count()
    outcome = RIGHT if (counted, sum(reads) <= 1) == (MEMBERS, True) else WRONG
    gate.open()
    cluster.outcome(result)
    judge("C11 completed_count() of a live chord", backend_kind, patched, outcome, sum(reads))


def reads_of(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each reading of the backend adds its number of results."""
    reads: list[int] = []

    def counted(name: str, size: Callable[[Any], int]) -> None:
        original = getattr(backend, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            reads.append(size(args))
            return original(*args, **kwargs)

        monkeypatch.setattr(backend, name, call)

    if hasattr(backend, "mget"):
        counted("mget", lambda args: len(args[0]))
        counted("get", lambda args: 1)
    else:
        # One statement for one session, on every version.
        counted("ResultSession", lambda args: 1)
    return reads
