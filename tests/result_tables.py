"""Results in the tables that Celery alone creates, stored and read without a worker."""

from __future__ import annotations

import sqlalchemy as sa
from celery.backends.database.session import SessionManager
from celery.utils import uuid

from tests.app_factory import make_app

#: More than a BLOB holds.
LONG = "ž" * 100_000


#: A database that cuts off what is too long, as those before MySQL 5.7 do.
LENIENT = {"connect_args": {"init_command": "SET sql_mode = ''"}}


def execute(stack, *statements):
    engine = sa.create_engine(stack.database_url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def backend_on(stack, patched=True, **settings):
    return make_app(stack.config(settings), patched=patched).backend


def new_tables(stack, backend):
    """Have the backend create its tables, which up to 5.4 it does once in a process."""
    execute(stack, "DROP TABLE celery_taskmeta", "DROP TABLE celery_tasksetmeta")
    backend.ResultSession(SessionManager())
    return backend


def stored(backend, value=LONG, state="SUCCESS"):
    """Store a result; return what is read again."""
    task_id = uuid()
    backend.store_result(task_id, value, state)
    return backend.get_result(task_id)
