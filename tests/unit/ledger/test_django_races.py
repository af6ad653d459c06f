from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chordguard.ledger import counters
from chordguard.ledger.model import Part
from tests.harness import wait_until
from tests.unit.ledger.chords import LATER, count, on, rewrite, start
from tests.unit.ledger.test_counters import IDS, SIZE, rows_of

pytestmark = pytest.mark.parametrize("kind", on("django-postgresql", "django-mysql"))


@contextlib.contextmanager
def before(ledger, verb, model, act):
    """Call `act` once, in another thread, before this one's first statement of that kind."""
    from django.db import connections

    acted = []

    def watch(execute, sql, *rest):
        table = model._meta.db_table
        if sql.startswith(verb) and table in sql.split("WHERE")[0] and not acted:
            acted.append(sql)
            # It may wait for this transaction, which it must not keep from going on.
            thread = threading.Thread(target=act)
            thread.start()
            thread.join(1)
        return execute(sql, *rest)

    with connections[ledger.alias].execute_wrapper(watch):
        yield
    assert acted


@pytest.mark.parametrize("model", ["chord_model", "counter_model", "member_model"])
def test_part_that_comes_while_a_chord_is_closed_leaves_nothing(ledger, model):
    group_id = start(ledger, IDS)
    ledger.count(group_id, Part(IDS[0]))
    other = type(ledger)(ledger.backend)

    with before(
        ledger, "DELETE", getattr(ledger, model), lambda: other.count(group_id, Part(IDS[1]))
    ):
        ledger.close(group_id)

    wait_until(lambda: rows_of(ledger, group_id) == {}, what="no rows")


@pytest.mark.parametrize("header", [["a", "b"], IDS], ids=["small", "large"])
@pytest.mark.parametrize("model", ["chord_model", "counter_model"])
def test_chord_that_is_closed_while_a_part_is_counted_leaves_nothing(ledger, header, model):
    group_id = start(ledger, header)
    if header == IDS:
        count(ledger, group_id, IDS[:1])
    elif model == "counter_model":
        pytest.skip("a small chord has no counters")
    model = ledger.counter_model if header == IDS else ledger.chord_model
    other = type(ledger)(ledger.backend)

    with before(ledger, "UPDATE", model, lambda: other.close(group_id)):
        count(ledger, group_id, header[1:2])

    wait_until(lambda: rows_of(ledger, group_id) == {}, what="no rows")


def test_parts_do_not_wait_for_the_row_of_their_chord(ledger):
    from django.db import transaction

    group_id = start(ledger, IDS)
    count(ledger, group_id, IDS[:1])

    with transaction.atomic(using=ledger.alias), ThreadPoolExecutor(1) as pool:
        rewrite(ledger, group_id, "progressed", LATER)
        counted = pool.submit(ledger.count, group_id, Part(IDS[1]))
        assert counted.result(timeout=30) is None

    ledger.close(group_id)


def test_part_that_waits_until_its_chord_is_spread_is_counted(ledger):
    group_id = start(ledger, None)
    other = type(ledger)(ledger.backend)
    counted = []

    with before(
        ledger,
        "INSERT",
        ledger.counter_model,
        lambda: counted.append(other.count(group_id, Part(IDS[0]))),
    ):
        ledger.set_header(group_id, IDS)

    wait_until(lambda: counted, what="the part")
    assert 1 == ledger.read(group_id).returned
    here = ledger._counters(group_id).filter(number=counters.number_of(IDS[0], 8))
    assert 1 == here.get().returned
    claims = count(ledger, group_id, IDS[1:])
    assert claims[-1].header == IDS
    assert SIZE == ledger.read(group_id).returned
    ledger.close(group_id)


def test_failed_commit_stores_and_counts_nothing(ledger):
    group_id = start(ledger, ["a"])

    def store():
        ledger.backend.store_result("a", 1, "SUCCESS")
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        ledger.store_and_count(group_id, Part("a"), store)

    assert 0 == ledger.read(group_id).returned
    assert set() == ledger.counted(group_id)
    ledger.close(group_id)
