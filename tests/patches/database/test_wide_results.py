from __future__ import annotations

import contextlib

import pytest
from celery import chord
from celery.exceptions import ChordError
from celery.utils import uuid
from click.testing import CliRunner

from chordguard.__main__ import main
from chordguard.errors import ResultTooLong
from chordguard.patches.database import wide_results
from tests.harness import Stack
from tests.result_tables import LENIENT, LONG, backend_on, execute, new_tables, stored

pytestmark = pytest.mark.parametrize("backend_kind", ["mysql"])

STRICT = {"connect_args": {"init_command": "SET sql_mode = 'STRICT_ALL_TABLES'"}}


@pytest.fixture
def stack(servers, require, monkeypatch, backend_kind):
    """A database in which Celery alone has created its tables."""
    require("redis", backend_kind)
    monkeypatch.setattr(wide_results, "_limits", {})
    with contextlib.closing(Stack(servers, backend_kind, "redis")) as stack:
        yield stack


@pytest.mark.parametrize("which", ["Celery alone", "switched off"])
@pytest.mark.parametrize("options", [LENIENT, STRICT], ids=["lenient", "strict"])
def test_long_result_is_lost(stack, fix, which, options):
    settings = {"database_engine_options": options, "result_backend_max_retries": 1}
    if which == "switched off":
        settings[fix.setting] = False
    backend = new_tables(stack, backend_on(stack, which != "Celery alone", **settings))

    try:
        is_whole = stored(backend) == LONG
    except ResultTooLong:
        raise
    except Exception:
        is_whole = False
    assert not is_whole


@pytest.mark.parametrize("options", [LENIENT, STRICT], ids=["lenient", "strict"])
def test_long_result_is_stored_whole_in_new_tables(stack, options):
    settings = {"database_engine_options": options, "result_extended": True}
    backend = new_tables(stack, backend_on(stack, **settings))

    assert LONG == stored(backend)
    group = backend.app.GroupResult(uuid(), [backend.app.AsyncResult(uuid()) for _ in range(2000)])
    group.save()
    assert group.results == backend.app.GroupResult.restore(group.id).results


@pytest.mark.parametrize("options", [LENIENT, STRICT], ids=["lenient", "strict"])
def test_result_that_is_too_long_for_an_old_table_is_an_error(stack, options):
    backend = backend_on(stack, database_engine_options=options)

    with pytest.raises(ResultTooLong, match=r"celery_taskmeta\.result holds 65535: widen it with"):
        stored(backend)
    group = backend.app.GroupResult(uuid(), [backend.app.AsyncResult(uuid()) for _ in range(2000)])
    with pytest.raises(ResultTooLong, match="the saved group"):
        group.save()
    error = stored(backend, ValueError(LONG), "FAILURE")
    assert "ResultTooLong" == type(error).__name__
    assert "x" * 1000 == stored(backend, "x" * 1000)


def test_traceback_that_is_too_long_is_cut(stack):
    backend, task_id = backend_on(stack, database_engine_options=STRICT), uuid()

    backend.store_result(task_id, ValueError("boom"), "FAILURE", traceback=LONG)

    kept = backend.get_traceback(task_id)
    assert kept.startswith("ž" * 32_000)
    assert kept.endswith("... (cut)")


def test_old_tables_are_widened_by_what_ddl_prints(stack):
    printed = CliRunner().invoke(main, ["ddl", "--dialect", "mysql"]).stdout
    alter = [line.removeprefix("-- ") for line in printed.splitlines() if "ALTER TABLE" in line]
    assert 2 == len(alter)
    execute(stack, *alter)

    assert LONG == stored(backend_on(stack))


def test_member_fails_with_an_error_that_says_so(with_fix):
    t = with_fix.tasks

    outcome = with_fix.outcome(chord([t.echo.s(1), t.echo.s(LONG)], t.collect.s()))

    assert isinstance(outcome.value, ChordError)
    assert "widen it with the ALTER" in str(outcome.value)
