from __future__ import annotations

import contextlib
import functools
import logging
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chord
from celery.app.task import Context
from celery.states import EXCEPTION_STATES, READY_STATES
from celery.utils import uuid
from sqlalchemy.pool import NullPool

from chordguard.engine.versions import celery_5_6, celery_5_7, celery_version
from tests.app_factory import make_app
from tests.chords.troubled import late_retry
from tests.harness import Stack, wait_until

#: While a member retries it keeps one process, and its second run takes another one.
pytestmark = pytest.mark.cluster(concurrency=3)

on_sqlite = pytest.mark.parametrize("backend_kind", ["sqlite"])
on_sql = pytest.mark.parametrize("backend_kind", ["sqlite", "postgresql", "mysql"])
before_5_7 = pytest.mark.skipif(
    celery_version() >= celery_5_7, reason="this Celery reads the row before it overwrites it"
)
from_5_7 = pytest.mark.skipif(
    celery_version() < celery_5_7, reason="this Celery overwrites what was stored before, too"
)


@pytest.fixture(scope="module")
def stacks(servers):
    """Return a function that returns the stack of a kind, which needs no worker."""
    kept = {}
    with contextlib.ExitStack() as closing:

        def get(kind):
            if kind not in kept:
                kept[kind] = closing.enter_context(
                    contextlib.closing(Stack(servers, kind, "redis"))
                )
            return kept[kind]

        yield get


@pytest.fixture(scope="module")
def kept():
    """The result backends of the tests before, each by what it was asked for."""
    return {}


@pytest.fixture
def backend_of(stacks, kept, require, backend_kind, fix):
    """Return a function that returns the result backend of an app."""
    require("redis", *({backend_kind} - {"sqlite"}))

    def backend_of(which="patched", **settings):
        if which == "switched off":
            settings[fix.setting] = False
        key = (backend_kind, which, *settings.items())
        if key not in kept:
            config = stacks(backend_kind).config(settings)
            kept[key] = make_app(config, which != "Celery alone").backend
        return kept[key]

    return backend_of


@pytest.fixture(params=["Celery alone", "switched off"])
def without(request, backend_of):
    return backend_of(request.param)


def member(task_id, **fields):
    """Return the request of a member of a chord."""
    fields = {"task": "tests.echo", "args": [1], "kwargs": {"x": [2]}, "retries": 0, **fields}
    return Context(id=task_id, group=uuid(), chord={"task": "tests.collect"}, **fields)


def store(backend, task_id, state, result=None, request=None, **options):
    request = request or member(task_id)
    backend.store_result(task_id, result, state, request=request, **options)


def stored(backend, *states):
    """Store a result of these states, one after the other, and return its row's state."""
    task_id = uuid()
    for state in states:
        store(backend, task_id, state, ValueError() if state in EXCEPTION_STATES else None)
    return row_of(backend, task_id)["status"]


@functools.cache
def table_of(url):
    """Return the table of results with the columns that the database says it has."""
    return sa.Table("celery_taskmeta", sa.MetaData(), autoload_with=sa.create_engine(url))


def row_of(backend, task_id):
    table, engine = table_of(backend.url), sa.create_engine(backend.url, poolclass=NullPool)
    with engine.connect() as connection:
        row = connection.execute(sa.select(table).where(table.c.task_id == task_id)).one()
    return dict(row._mapping)


class TestRetry:
    @before_5_7
    @on_sqlite
    def test_stored_late_makes_the_chord_wait(self, without_fix, gate):
        result = late_retry(without_fix, gate)

        assert without_fix.outcome(result, quiet=1.2).hung
        assert "RETRY" == result.parent[0].state

    @on_sqlite
    def test_stored_late_is_passed_over(self, with_fix, gate):
        assert [1, 2] == with_fix.run(late_retry(with_fix, gate))


class Racing:
    """A result that another process outruns: while it is encoded, SUCCESS is stored."""

    def __init__(self, backend, task_id):
        self.backend = backend
        self.task_id = task_id

    def __json__(self):
        store(self.backend, self.task_id, "SUCCESS", "the first")
        return "the second"


def outrun(backend):
    task_id = uuid()
    store(backend, task_id, "STARTED")
    store(backend, task_id, "PROGRESS", Racing(backend, task_id))
    return backend.get_task_meta(task_id, cache=False)


class TestStates:
    @before_5_7
    @on_sql
    def test_success_is_overwritten(self, without):
        assert "RETRY" == stored(without, "SUCCESS", "RETRY")

    @from_5_7
    @on_sqlite
    def test_success_that_is_stored_at_the_same_time_is_overwritten(self, without):
        assert "PROGRESS" == outrun(without)["status"]

    @from_5_7
    @on_sql
    def test_success_that_is_stored_at_the_same_time_stays(self, backend_of):
        meta = outrun(backend_of())

        assert ("SUCCESS", "the first") == (meta["status"], meta["result"])

    @pytest.mark.parametrize("late", ["STARTED", "RETRY"])
    @pytest.mark.parametrize("ready", ["SUCCESS", "FAILURE"])
    @on_sql
    def test_ready_state_stays(self, backend_of, ready, late):
        assert ready == stored(backend_of(), ready, late)

    @pytest.mark.parametrize(
        "states",
        [
            ("STARTED", "PROGRESS"),
            ("STARTED", "RETRY", "STARTED", "SUCCESS"),
            ("FAILURE", "SUCCESS"),
            ("REVOKED", "FAILURE"),
        ],
        ids="-".join,
    )
    @on_sql
    def test_other_states_are_replaced(self, backend_of, states):
        assert states[-1] == stored(backend_of(), *states)

    @pytest.mark.parametrize("which", ["Celery alone", "patched"])
    @on_sql
    def test_second_ready_state_after_success_is_taken_as_celery_takes_it(self, backend_of, which):
        backend, task_id = backend_of(which), uuid()
        is_kept = celery_version() >= celery_5_7

        store(backend, task_id, "SUCCESS", "first")
        store(backend, task_id, "SUCCESS", "second")

        meta = backend.get_task_meta(task_id, cache=False)
        assert ("first" if is_kept else "second") == meta["result"]
        assert ("SUCCESS" if is_kept else "FAILURE") == stored(backend, "SUCCESS", "FAILURE")


#: What is stored of one task, one after the other: (state, result, other arguments, request).
HISTORIES: dict[str, list[tuple[str, Any, dict[str, Any], dict[str, Any]]]] = {
    "success": [("SUCCESS", {"a": [1, None, "ž"]}, {}, {})],
    "failure": [("FAILURE", ValueError("boom"), {"traceback": "Traceback ž"}, {"retries": 3})],
    "started": [("STARTED", {"pid": 1}, {}, {})],
    "all states": [
        ("STARTED", {"pid": 1}, {}, {"hostname": "first@host"}),
        ("RETRY", ValueError("again"), {"traceback": "Traceback"}, {"retries": 1}),
        ("FAILURE", ValueError("boom"), {"traceback": "Traceback"}, {}),
        ("SUCCESS", "value", {}, {"hostname": "second@host"}),
    ],
    "stamps that stay": [
        ("STARTED", None, {}, {"stamped_headers": ["on"], "stamps": {"on": ["call"]}}),
        ("SUCCESS", "value", {}, {}),
    ],
    "stamps that are replaced": [
        ("STARTED", None, {}, {"stamped_headers": ["on"], "stamps": {"on": ["call"]}}),
        ("SUCCESS", 1, {}, {"stamped_headers": ["off"], "stamps": {"off": ["later"]}}),
    ],
}


@on_sql
class TestRows:
    @pytest.mark.parametrize(
        ("history", "extended"),
        [*((history, True) for history in HISTORIES), ("all states", False)],
    )
    def test_are_those_that_celery_stores(self, backend_of, history, extended):
        rows = []
        for which in ("Celery alone", "patched"):
            backend, task_id, seen = backend_of(which, result_extended=extended), uuid(), []
            children = [backend.app.AsyncResult("child")]
            for state, result, options, fields in HISTORIES[history]:
                request = {
                    "hostname": "worker@host",
                    "delivery_info": {"routing_key": "queue"},
                    "children": children,
                    **fields,
                }
                store(backend, task_id, state, result, member(task_id, **request), **options)
                row = row_of(backend, task_id)
                assert task_id == row.pop("task_id")
                assert row.pop("id")
                seen.append(row)
            rows.append(seen)

        for by_celery, by_patch in zip(*rows, strict=True):
            dates = by_celery.pop("date_done"), by_patch.pop("date_done")
            assert by_celery == by_patch
            if by_celery["status"] in READY_STATES:
                assert abs(dates[0] - dates[1]) < timedelta(minutes=1)

    @pytest.mark.parametrize("states", [("STARTED",), ("STARTED", "RETRY")], ids="-".join)
    def test_that_are_not_ready_have_a_date_where_those_of_celery_have_one(
        self, backend_of, states
    ):
        rows = []
        for which in ("Celery alone", "patched"):
            backend, task_id = backend_of(which), uuid()
            for state in states:
                store(backend, task_id, state, ValueError() if state == "RETRY" else None)
            rows.append(row_of(backend, task_id)["date_done"] is None)

        assert rows[0] == rows[1]

    @from_5_7
    def test_keep_stamps_that_a_later_store_does_not_have(self, backend_of):
        backend, task_id = backend_of(result_extended=True), uuid()
        stamps = {"stamped_headers": ["on"], "stamps": {"on": ["call"]}}

        store(backend, task_id, "STARTED", request=member(task_id, **stamps))
        store(backend, task_id, "SUCCESS")

        assert ["call"] == backend.get_task_meta(task_id, cache=False)["on"]

    def test_of_tasks_that_are_no_members_are_left_to_celery(self, backend_of):
        rows = []
        for which in ("Celery alone", "patched"):
            backend, task_id = backend_of(which), uuid()
            for state in ("SUCCESS", "RETRY"):
                backend.store_result(task_id, None, state)
            rows.append(row_of(backend, task_id)["status"])

        assert rows[0] == rows[1]


def drop_constraint(url):
    """Take the unique constraint off the table of results, as an old table may be without."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            statements = ["ALTER TABLE celery_taskmeta DROP CONSTRAINT celery_taskmeta_task_id_key"]
        elif engine.dialect.name == "mysql":
            statements = ["ALTER TABLE celery_taskmeta DROP INDEX task_id"]
        else:
            table = connection.execute(
                sa.text("SELECT sql FROM sqlite_master WHERE name = 'celery_taskmeta'")
            ).scalar_one()
            assert "UNIQUE (task_id)" in table
            without = table.replace("UNIQUE (task_id)", "CHECK (task_id != '')")
            statements = ["DROP TABLE celery_taskmeta", without]
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@on_sql
def test_table_without_the_constraint_is_warned_of_once_and_used_as_by_celery(
    servers, require, backend_kind, caplog
):
    require("redis", *({backend_kind} - {"sqlite"}))
    with contextlib.closing(Stack(servers, backend_kind, "redis")) as stack:
        drop_constraint(stack.database_url)
        backend = make_app(stack.config(), patched=True).backend
        caplog.set_level(logging.WARNING, "chordguard")

        for value in ("first", "second"):
            task_id = uuid()
            store(backend, task_id, "SUCCESS", value)
            assert value == backend.get_result(task_id)

    (warning,) = [record for record in caplog.records if record.name == "chordguard"]
    assert "the table celery_taskmeta has no unique constraint on task_id" in warning.getMessage()


@pytest.mark.skipif(
    not celery_5_6 <= celery_version() < celery_5_7,
    reason="only Celery 5.6 stores that a task is revoked which it does not know",
)
class TestRevokedByItsId:
    @on_sql
    def test_member_that_is_done_keeps_its_result(self, with_fix):
        assert ("SUCCESS", 1) == revoke_one_that_is_done(with_fix)

    @on_sqlite
    def test_its_result_is_replaced(self, without_fix):
        assert "REVOKED" == revoke_one_that_is_done(without_fix)[0]

    @on_sqlite
    def test_task_that_has_not_run_is_revoked(self, with_fix):
        result = with_fix.app.AsyncResult(uuid())
        result.revoke()

        wait_until(lambda: result.state == "REVOKED", what="the revocation")


def revoke_one_that_is_done(cluster):
    t = cluster.tasks
    result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
    assert [1, 2] == cluster.run(result)
    member = result.parent.results[0]
    cluster.app.control.revoke(member.id, reply=True, timeout=5)
    meta = cluster.app.backend._get_task_meta_for(member.id)
    return meta["status"], meta["result"]
