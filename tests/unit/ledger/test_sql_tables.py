from __future__ import annotations

import sqlalchemy as sa
from celery import Celery

from chordguard.ledger.tables import DEFAULT_NAMES, Tables
from tests.unit.ledger.chords import THREADS, at_once, in_sqlalchemy, ledger_on


@in_sqlalchemy
def test_several_may_create_them_at_once(kind, require, new_database):
    require(*({kind} - {"sqlite"}))
    url = new_database(kind)
    # A result backend creates its own tables first, which do not concern us here.
    ledgers = [ledger_on(url) for _ in range(THREADS)]
    ledgers[0].backend.ResultSession().close()

    assert all(at_once(ledger._create_tables for ledger in ledgers))

    tables = sa.inspect(sa.create_engine(url)).get_table_names()
    assert set(DEFAULT_NAMES.values()) <= set(tables)


def test_tables_are_where_the_app_wants_them():
    app = Celery("ledger", broker="memory://", set_as_current=False)

    def names(**settings):
        app.conf.update({"database_table_names": {}, "database_table_schemas": {}, **settings})
        tables = Tables.of(app)
        return [table.fullname for table in (tables.chord, tables.member, tables.counter)]

    defaults = ["chordguard_chord", "chordguard_chord_member", "chordguard_chord_counter"]
    assert defaults == names()
    assert [f"s.{name}" for name in defaults] == names(database_table_schemas={"task": "s"})
    assert [f"c.{name}" for name in defaults] == names(
        database_table_schemas={"task": "s", "chord": "c"}
    )
    assert ["c.x", "m.y", "c.z"] == names(
        database_table_names={"chord": "x", "chord_member": "y", "chord_counter": "z"},
        database_table_schemas={"chord": "c", "chord_member": "m"},
    )
    assert Tables.of(app) is Tables.of(app)
