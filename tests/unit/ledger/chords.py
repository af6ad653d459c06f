"""Chords on a ledger of either kind: started, counted, and changed behind its back."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import celery
import pytest
import sqlalchemy as sa
from celery import Celery
from celery.app.task import Context
from celery.utils import uuid

from chordguard.ledger.model import ChordUnknown
from chordguard.ledger.packing import leaf_ids
from chordguard.ledger.sql import DatabaseLedger
from chordguard.upstream.backends import is_django, is_redis
from tests import tasks
from tests.django import project
from tests.harness import wait_until

THREADS = 8

SQL = ("sqlite", "postgresql", "mysql")

#: Ledgers whose store is not that of the results.
OWN = ("redis own", "postgresql own")


def on(*kinds):
    """Return parameters for the fixture `kind`; each kind may have a process of its own."""
    return [pytest.param(kind, marks=marks_of(kind)) for kind in kinds]


def marks_of(kind):
    marks = [pytest.mark.xdist_group(f"ledger-{kind}")]
    # To a ledger whose statements Django writes they are two more databases.
    is_nightly = kind in ("django-sqlite", "django-mysql")
    return [*marks, pytest.mark.nightly] if is_nightly else marks


in_sql = pytest.mark.parametrize("kind", on(*SQL, *project.BACKENDS))
in_sqlalchemy = pytest.mark.parametrize("kind", on(*SQL))
in_redis = pytest.mark.parametrize("kind", on("redis"))

#: How many transactions of the database at hand wait for another one. The table of transactions
#: of InnoDB is not renewed while somebody keeps reading it: there a statement that runs for a
#: second is one that waits.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE command = 'Query' AND time >= 1 AND db = database() AND id <> connection_id()",
}

#: Seconds until the chords of these tests are due, unless it matters.
LATER = 3600.0


def ledger_on(url):
    return DatabaseLedger(app_on(f"db+{url}").backend)


def ledger_on_django():
    """Return a ledger in the database that Django works with now."""
    from chordguard.ledger.django import DjangoLedger

    return DjangoLedger(app_on("django-db").backend)


def app_on(result_url, name="ledger", **settings):
    """Return an app without a broker; on Redis all its keys begin with `name`."""
    if result_url.startswith("redis"):
        settings["result_backend_transport_options"] = {"global_keyprefix": f"{name}:"}
        if celery.VERSION[:2] < (5, 3):
            result_url = f"tests.old_redis:PrefixedRedisBackend+{result_url}"
    names = dict.fromkeys(
        ("task_default_queue", "task_default_exchange", "task_default_routing_key"), name
    )
    app = Celery(name, broker="memory://", set_as_current=False)
    app.conf.update({"result_backend": result_url, **names, **settings})
    tasks.register(app)
    return app


def start(ledger, header, *, due=None, timeout=None, body=None, body_id=None):
    """Open a chord as its producer does; return its id."""
    group_id = uuid()
    due = time.time() + LATER if due is None else due
    ledger.open(group_id, header, body, due, timeout, body_id=body_id)
    if header is not None and is_redis(ledger.backend) and not ledger.is_own:
        ledger.set_size(group_id, len(list(leaf_ids(header))))
    return group_id


def request_of(task_id, index=0, **options):
    return Context(id=task_id, task=f"{tasks.PREFIX}echo", group_index=index, **options)


def part_of(ledger, task_id, result=None, index=0):
    """Return the part of a member that is done well."""
    return ledger.part_of(request_of(task_id, index), "SUCCESS", result, is_ignored=False)


def count(ledger, group_id, task_ids):
    """Count the parts of several members; return the claims."""

    def claim_of(task_id):
        # One with a store of its own tells what others take for a part that comes late.
        with contextlib.suppress(ChordUnknown):
            return ledger.count(group_id, part_of(ledger, task_id))

    return list(map(claim_of, task_ids))


def counted(ledger, group_id):
    """Return the ids of the members that were counted."""
    if is_redis(ledger.backend):
        return set(ledger.parts(group_id))
    return ledger.counted(group_id)


def keys_of(ledger):
    """Return the keys of this test."""
    name = ledger.backend.app.main
    return set(ledger.backend.client.scan_iter(f"{name}:*", count=1000))


def execute(ledger, statement, **values):
    engine = sa.create_engine(ledger.backend.url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)
    engine.dispose()


def rewrite(ledger, group_id, name, value):
    """Change what the ledger says of a chord."""
    if is_redis(ledger.backend):
        record = ledger.key(group_id, ".chordguard")
        ledger.backend.client.hset(record, name, value)
    elif is_django(ledger.backend):
        ledger.chords().filter(pk=group_id).update(**{name: value})
    else:
        execute(
            ledger,
            f"UPDATE chordguard_chord SET {name} = :value WHERE id = :id",
            id=group_id,
            value=value,
        )


def expire_claim(ledger, group_id):
    """Let the claim on a chord run out, long ago."""
    if is_redis(ledger.backend):
        ledger.backend.client.delete(ledger.key(group_id, ".c"))
    rewrite(ledger, group_id, "claimed_until", 1.0)


def is_due(ledger, group_id, when):
    """Tell whether a chord is due, and make it due again right after `when`."""
    return group_id in ledger.take_due(when, when + 0.001, 10_000)


def at_once(calls):
    """Return what the functions return that many threads call at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def count_during(ledger, group_id, part, change):
    """Count a part while the transaction in which `change` is made is not committed yet.

    Returns whether the part waited for it, and its claim.
    """
    engine = sa.create_engine(ledger.backend.url)
    # What waits is seen by a transaction that began later.
    watching = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    waiting = sa.text(WAITING[engine.dialect.name])
    with ThreadPoolExecutor(1) as pool, watching:
        with engine.begin() as connection:
            change(connection)
            counted = pool.submit(ledger.count, group_id, part)
            wait_until(
                lambda: counted.done() or watching.execute(waiting).scalar(),
                what="a part that waits",
            )
            has_waited = not counted.done()
        claim = counted.result()
    engine.dispose()
    return has_waited, claim
