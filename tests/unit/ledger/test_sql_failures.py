from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from celery.utils import uuid
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from chordguard.ledger.model import Part
from tests.unit.ledger.chords import LATER, in_sqlalchemy

pytestmark = in_sqlalchemy


@pytest.fixture
def dropped(ledger):
    """Drop the tables; a function creates them again."""
    engine = sa.create_engine(ledger.backend.url)
    ledger.tables.metadata.drop_all(engine)
    yield lambda: ledger.tables.metadata.create_all(engine)
    ledger.tables.metadata.create_all(engine)
    engine.dispose()


def test_what_failed_is_tried_again(ledger, dropped):
    group_id, events = uuid(), []

    def note(context):
        events.append("failed")

    def mend(*_):
        if ["failed"] == events:
            events.append("mended")
            dropped()

    sa.event.listen(Engine, "handle_error", note)
    sa.event.listen(Pool, "checkin", mend)
    try:
        ledger.open(group_id, ["a"], None, time.time() + LATER, None)
    finally:
        sa.event.remove(Engine, "handle_error", note)
        sa.event.remove(Pool, "checkin", mend)

    assert ["failed", "mended"] == events[:2]
    assert 1 == ledger.read(group_id).size


def test_what_fails_each_time_is_raised_and_the_tables_looked_for_again(ledger, dropped):
    for call in (lambda: ledger.count(uuid(), Part("a")), lambda: ledger.read(uuid())):
        with pytest.raises(sa.exc.DatabaseError):
            call()

    assert ledger.is_usable()
    assert ledger.read(uuid()) is None


def test_cleanup_creates_tables_that_were_dropped(ledger, dropped):
    assert 0 == ledger.forget_abandoned(time.time())
    assert ledger.read(uuid()) is None
