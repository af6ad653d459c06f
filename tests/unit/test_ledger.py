from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import celery
import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from celery.app.task import Context
from celery.utils import uuid
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

import chordguard.ledger.redis
from chordguard.backends import StoredResult, is_redis
from chordguard.ledger.database import DatabaseLedger, Tables
from chordguard.ledger.model import CLAIM_SECONDS, Part, leaf_ids, new_owner, pack_data, unpack_body
from chordguard.ledger.redis import SPARE_SECONDS, RedisLedger
from tests import tasks
from tests.harness import create_result_tables, delete_keys, wait_until

THREADS = 8

SQL = ("sqlite", "postgresql", "mysql")


def on(*kinds, marks=()):
    """Return parameters for the fixture `kind`; each kind may have a process of its own."""
    return [
        pytest.param(kind, marks=[pytest.mark.xdist_group(f"ledger-{kind}"), *marks])
        for kind in kinds
    ]


in_sql = pytest.mark.parametrize("kind", on(*SQL))
in_redis = pytest.mark.parametrize("kind", on("redis"))


is_celery_5_7 = celery.VERSION[:2] >= (5, 7)

#: Seconds until the chords of these tests are due, unless it matters.
LATER = 3600.0


@pytest.fixture(scope="module")
def new_database(servers, tmp_path_factory):
    """Return a function that creates an empty database and returns its URL."""
    with contextlib.ExitStack() as closing:

        def create(kind):
            if kind == "sqlite":
                return f"sqlite:///{tmp_path_factory.mktemp('database') / 'results.sqlite'}"
            server = servers.get(kind)
            url = server.kind.create_database(server)
            closing.callback(server.kind.drop_database, server, url)
            # PyMySQL reads all certificates for each connection.
            return f"{url}?ssl_disabled=true" if kind == "mysql" else url

        yield create


@pytest.fixture(scope="module")
def shared(new_database):
    """Return a function that returns the ledger that the tests on a database share."""
    ledgers = {}

    def get(kind):
        if kind not in ledgers:
            url = new_database(kind)
            create_result_tables(url)
            ledgers[kind] = ledger_on(url)
        return ledgers[kind]

    return get


def ledger_on(url):
    return DatabaseLedger(app_on(f"db+{url}").backend)


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


@pytest.fixture
def redis_ledger(servers):
    """Return a function that makes a ledger on the keys of this test, and of no other."""
    url, name = servers.get("redis").url, f"cg-{uuid()}"
    backends = []

    def make(**settings):
        backends.append(app_on(url, name, **settings).backend)
        return RedisLedger(backends[-1])

    yield make
    delete_keys(url, f"{name}:*")
    for backend in backends:
        backend.client.connection_pool.disconnect()


@pytest.fixture(params=on("redis", *SQL))
def kind(request):
    return request.param


@pytest.fixture
def ledger(request, kind, require):
    require(*({kind} - {"sqlite"}))
    if kind == "redis":
        return request.getfixturevalue("redis_ledger")()
    ledger = request.getfixturevalue("shared")(kind)
    assert ledger.is_usable()
    return ledger


@pytest.fixture
def group_id(ledger):
    """The id of a chord of three."""
    group_id = start(ledger, ["a", ["b"], "c"])
    yield group_id
    ledger.close(group_id)


def start(ledger, header, *, due=None, timeout=None, body=None):
    """Open a chord as its producer does; return its id."""
    group_id = uuid()
    due = time.time() + LATER if due is None else due
    ledger.open(group_id, header, body, due, timeout)
    if header is not None and is_redis(ledger.backend):
        ledger.set_size(group_id, len(list(leaf_ids(header))))
    return group_id


def request_of(task_id, index=0, **options):
    return Context(id=task_id, task=f"{tasks.PREFIX}echo", group_index=index, **options)


def part_of(ledger, task_id, result=None, index=0):
    """Return the part of a member that is done well."""
    return ledger.part_of(request_of(task_id, index), "SUCCESS", result, is_ignored=False)


def count(ledger, group_id, task_ids):
    """Count the parts of several members; return the claims."""
    return [ledger.count(group_id, part_of(ledger, task_id)) for task_id in task_ids]


def counted(ledger, group_id):
    """Return the ids of the members that were counted."""
    if is_redis(ledger.backend):
        return {part.task_id for part in ledger._parts(group_id)}
    return ledger.counted(group_id)


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


class TestOpening:
    def test_chord_is_known_from_then_on(self, ledger, group_id):
        record = ledger.read(group_id)

        assert (3, 0, 0) == (record.size, record.returned, record.claimed_until)
        assert ["a", ["b"], "c"] == record.header
        assert time.time() - 60 < record.created <= record.progressed <= time.time()
        assert not record.is_complete
        assert not record.is_over
        assert record.body is None
        assert ledger.read(uuid()) is None

    def test_body_is_kept(self, ledger):
        app = ledger.backend.app
        body = tasks.named(app).collect.s(record="r\u017e").set(task_id="body")

        group_id = start(ledger, ["a"], body=pack_data(app, body))

        kept = unpack_body(app, ledger.read(group_id).body)
        assert (body.task, body.kwargs, body.id) == (kept.task, kept.kwargs, kept.id)

    def test_opened_twice_goes_on(self, ledger, group_id):
        count(ledger, group_id, "a")

        # On Redis the same chord: another one has another id.
        ledger.open(group_id, ["a", ["b"], "c"], None, time.time() + LATER, None)

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "bc")]

    def test_members_may_be_told_later(self, ledger):
        group_id = start(ledger, None)
        assert [None] == count(ledger, group_id, "a")
        assert ledger.read(group_id).size is None
        assert ledger.read(group_id).header is None

        ledger.set_header(group_id, ["a", ["b"]])

        assert (2, ["a", ["b"]]) == (ledger.read(group_id).size, ledger.read(group_id).header)
        assert ["a", ["b"]] == count(ledger, group_id, "b")[0].header

    def test_members_that_are_told_after_all_of_them_returned_leave_the_chord_to_be_claimed(
        self, ledger
    ):
        group_id = start(ledger, None)
        assert [None] == count(ledger, group_id, "a")

        ledger.set_header(group_id, ["a"])

        assert ledger.read(group_id).is_complete
        assert ["a"] == ledger.claim(group_id).header

    def test_header_may_be_large(self, ledger):
        header = [uuid() for _ in range(10_000)]

        assert header == ledger.claim(start(ledger, header)).header


class TestCounting:
    def test_last_part_claims_the_chord(self, ledger, group_id):
        claims = count(ledger, group_id, "bca")

        assert [None, None] == claims[:2]
        assert (group_id, ["a", ["b"], "c"]) == (claims[2].group_id, claims[2].header)
        assert ledger.read(group_id).is_complete
        left = ledger.read(group_id).claimed_until - time.time()
        assert CLAIM_SECONDS - 30 < left <= CLAIM_SECONDS

    def test_part_counts_once(self, ledger, group_id):
        assert [None] * 5 == count(ledger, group_id, "aabab")

        assert 2 == ledger.read(group_id).returned
        assert {"a", "b"} == counted(ledger, group_id)

    def test_part_that_comes_twice_with_different_results_counts_once(self, ledger, group_id):
        for result in (1, 2):
            assert ledger.count(group_id, part_of(ledger, "a", result)) is None

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "bc")]

    def test_last_part_claims_once(self, ledger, group_id):
        claims = count(ledger, group_id, "abccc")

        assert 1 == len(list(filter(None, claims)))
        assert claims[2]

    def test_part_is_progress(self, ledger, group_id):
        rewrite(ledger, group_id, "progressed", 1.0)

        count(ledger, group_id, "a")

        assert time.time() - 60 < ledger.read(group_id).progressed

    def test_part_that_comes_again_is_no_progress(self, ledger, group_id):
        count(ledger, group_id, "a")
        rewrite(ledger, group_id, "progressed", 1.0)

        count(ledger, group_id, "a")

        assert 1.0 == ledger.read(group_id).progressed

    @pytest.mark.parametrize("is_first", [True, False], ids=["recounted first", "recounted last"])
    def test_part_that_is_recounted_counts_once(self, ledger, group_id, is_first):
        parts = [
            part_of(ledger, "b", "from the task", index=7),
            ledger.part_from(StoredResult("b", "SUCCESS", "stored"), 1),
        ]
        for part in reversed(parts) if is_first else parts:
            assert ledger.count(group_id, part) is None

        assert 1 == ledger.read(group_id).returned
        assert [None, True] == [claim and True for claim in count(ledger, group_id, "ac")]

    def test_recounted_part_may_be_the_last(self, ledger, group_id):
        count(ledger, group_id, "ac")

        claim = ledger.count(group_id, ledger.part_from(StoredResult("b", "SUCCESS", 1), 1))

        assert ["a", ["b"], "c"] == claim.header

    def test_parts_that_come_at_once_claim_once(self, ledger):
        members = [uuid() for _ in range(24)]
        group_id = start(ledger, members)

        claims = at_once(
            lambda member=member: ledger.count(group_id, part_of(ledger, member))
            for member in members * 2
        )

        (claim,) = filter(None, claims)
        assert members == claim.header
        assert len(members) == ledger.read(group_id).returned
        assert set(members) == counted(ledger, group_id)

    def test_parts_of_many_chords_do_not_mix(self, ledger):
        group_ids = [start(ledger, ["a", "b", "c", "d"]) for _ in range(6)]

        claims = at_once(
            lambda group_id=group_id, task_id=task_id: ledger.count(
                group_id, part_of(ledger, task_id)
            )
            for task_id in "abcd"
            for group_id in group_ids
        )

        assert sorted(group_ids) == sorted(claim.group_id for claim in claims if claim)

    @in_sql
    def test_part_of_an_unknown_chord_leaves_nothing(self, ledger):
        group_id = uuid()

        assert [None] == count(ledger, group_id, "a")
        assert set() == ledger.counted(group_id)

    def test_late_part_of_a_chord_that_has_ended_leaves_nothing(self, ledger, group_id):
        ledger.close(group_id)

        assert [None] == count(ledger, group_id, "a")
        assert set() == counted(ledger, group_id)
        assert ledger.read(group_id) is None

    def test_last_part_claims_nothing_while_somebody_ends_the_chord(self, ledger, group_id):
        ledger.claim(group_id)

        assert [None] * 3 == count(ledger, group_id, "abc")
        assert 3 == ledger.read(group_id).returned

    @in_sql
    def test_results_that_are_brought_along_are_kept(self, ledger, group_id):
        payload = b'\x00\xff["\xc5\xbe"]' * 20_000
        ledger.count(group_id, Part("a", payload))
        ledger.count(group_id, Part("b"))
        ledger.count(group_id, Part("a", b"second"))

        assert {"a": payload} == ledger.payloads(group_id)


class TestResults:
    def store(self, ledger, task_id, result, state="SUCCESS"):
        ledger.backend.store_result(task_id, result, state)
        return task_id

    @pytest.fixture
    def ids(self):
        return [uuid() for _ in range(4)]

    def test_outstanding_are_those_that_were_not_counted(self, ledger, ids):
        header = [ids[0], [ids[1], ids[2]], ids[3]]
        group_id = start(ledger, header)
        for task_id in ids[:2]:
            self.store(ledger, task_id, 1)
        self.store(ledger, ids[2], None, "STARTED")
        count(ledger, group_id, ids[:1])

        found = ledger.outstanding({group_id: header})[group_id]

        assert [(ids[1], "SUCCESS")] == [(r.task_id, r.state) for r in found.uncounted]
        assert tuple(ids[2:]) == found.missing

    def test_results_are_collected(self, ledger, ids):
        header = [ids[0], [ids[1]], ids[2], ids[3]]
        group_id = start(ledger, header)
        self.store(ledger, ids[0], {"a": [1]})
        self.store(ledger, ids[1], ValueError("boom"), "FAILURE")
        self.store(ledger, ids[2], None, "STARTED")
        ledger.count(group_id, part_of(ledger, ids[0], {"a": [1]}))

        collected, results = ledger.collect(ledger.claim(group_id))

        assert header == collected
        assert set(ids[:2]) == results.keys()
        assert {"a": [1]} == results[ids[0]].value
        assert results[ids[1]].failed

    def test_result_that_is_ignored_is_collected(self, ledger, ids):
        group_id = start(ledger, ids[:1])
        request = request_of(ids[0])

        claim = ledger.count(
            group_id, ledger.part_of(request, "SUCCESS", {"b": 1}, is_ignored=True)
        )

        assert {"b": 1} == ledger.collect(claim)[1][ids[0]].value

    def test_members_that_were_added_are_collected(self, ledger, ids):
        group_id = start(ledger, ids[:1])
        ledger.add(group_id, ids[1:2])

        claims = [ledger.count(group_id, part_of(ledger, id_, n)) for n, id_ in enumerate(ids[:2])]
        for n, task_id in enumerate(ids[:2]):
            self.store(ledger, task_id, n)

        assert claims[0] is None
        header, results = ledger.collect(claims[1])
        assert ids[:2] == header
        assert [0, 1] == [results[task_id].value for task_id in header]


class TestClaiming:
    def test_chord_is_claimed_once(self, ledger, group_id):
        claims = at_once([lambda: ledger.claim(group_id)] * THREADS)

        (claim,) = filter(None, claims)
        assert ["a", ["b"], "c"] == claim.header

    def test_unknown_chord_cannot_be_claimed(self, ledger):
        assert ledger.claim(uuid()) is None

    def test_chord_that_has_ended_cannot_be_claimed(self, ledger, group_id):
        ledger.close(group_id)

        assert ledger.claim(group_id) is None

    def test_released_chord_can_be_claimed(self, ledger, group_id):
        ledger.release(ledger.claim(group_id))

        assert 0 == ledger.read(group_id).claimed_until
        assert ledger.claim(group_id)

    def test_released_chord_is_due_at_once(self, ledger, group_id):
        claim = ledger.claim(group_id)
        assert not is_due(ledger, group_id, time.time())

        ledger.release(claim)

        assert is_due(ledger, group_id, time.time())

    @pytest.mark.parametrize("by", ["claim", "count"])
    def test_claimed_chord_is_due_when_the_claim_ends(self, ledger, group_id, by):
        if by == "claim":
            ledger.claim(group_id)
        else:
            count(ledger, group_id, "abc")
        until = ledger.read(group_id).claimed_until

        assert not is_due(ledger, group_id, until - 1)
        assert is_due(ledger, group_id, until + 1)

    def test_expired_claim_is_none(self, ledger, group_id):
        first = ledger.claim(group_id)
        expire_claim(ledger, group_id)

        second = ledger.claim(group_id)
        ledger.release(first)

        assert second.token != first.token
        assert ledger.claim(group_id) is None

    def test_last_part_claims_what_an_expired_claim_was_for(self, ledger, group_id):
        ledger.claim(group_id)
        expire_claim(ledger, group_id)

        assert [False, False, True] == [
            claim is not None for claim in count(ledger, group_id, "abc")
        ]


class TestRenewing:
    def test_claim_that_is_renewed_lasts_longer(self, ledger, group_id, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr("chordguard.ledger.model.CLAIM_SECONDS", 10.0)
            claim = ledger.claim(group_id)
        assert ledger.read(group_id).claimed_until <= time.time() + 11

        assert ledger.renew(claim)

        until = ledger.read(group_id).claimed_until
        assert CLAIM_SECONDS - 30 < until - time.time() <= CLAIM_SECONDS
        assert ledger.claim(group_id) is None
        assert not is_due(ledger, group_id, until - 1)
        assert is_due(ledger, group_id, until + 1)

    def test_claim_that_somebody_else_has_is_lost(self, ledger, group_id):
        first = ledger.claim(group_id)
        expire_claim(ledger, group_id)
        second = ledger.claim(group_id)

        assert not ledger.renew(first)
        assert ledger.renew(second)

    def test_claim_on_a_chord_that_has_ended_is_lost(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.close(group_id)

        assert not ledger.renew(claim)
        assert ledger.read(group_id) is None

    def test_claim_that_was_given_back_is_lost(self, ledger, group_id):
        claim = ledger.claim(group_id)
        ledger.release(claim)

        assert not ledger.renew(claim)
        assert 0 == ledger.read(group_id).claimed_until


class TestReleasingAll:
    def test_claims_of_others_are_left(self, ledger, monkeypatch):
        owner = "chordguard.ledger.model.owner"
        monkeypatch.setattr(owner, new_owner())
        theirs = start(ledger, ["a"])
        assert ledger.claim(theirs)
        monkeypatch.setattr(owner, new_owner())
        mine, counted_here, free = (start(ledger, ["a"]) for _ in range(3))
        assert ledger.claim(mine)
        assert all(count(ledger, counted_here, "a"))
        claimed = [mine, counted_here]
        # On Redis the end of a claim is rounded to milliseconds.
        time.sleep(0.002)

        assert 2 == ledger.release_all()

        assert [0, 0] == [ledger.read(group_id).claimed_until for group_id in claimed]
        due = ledger.take_due(time.time(), time.time() + LATER, 10_000)
        assert set(claimed) <= set(due)
        assert not {theirs, free} & set(due)
        assert ledger.read(theirs).claimed_until > time.time()
        assert ledger.claim(theirs) is None
        assert 0 == ledger.release_all()


class TestDue:
    def test_chord_is_due_when_it_was_said(self, ledger):
        now = time.time()
        early, late = start(ledger, ["a"], due=now - 1), start(ledger, ["a"], due=now + 1)

        taken = ledger.take_due(now, now + LATER, 10_000)

        assert early in taken
        assert late not in taken

    def test_chord_that_was_taken_is_due_again_later(self, ledger):
        now = time.time()
        group_id = start(ledger, ["a"], due=now - 1)

        assert group_id in ledger.take_due(now, now + 60, 10_000)
        assert group_id not in ledger.take_due(now + 59, now + 120, 10_000)
        assert group_id in ledger.take_due(now + 61, now + 120, 10_000)

    def test_those_that_are_due_for_longest_are_taken_first(self, ledger):
        group_ids = [start(ledger, ["a"], due=float(due)) for due in (30, 10, 20)]

        taken = [ledger.take_due(50.0, 100.0 + n, 1) for n in range(4)]

        assert [[group_ids[1]], [group_ids[2]], [group_ids[0]], []] == taken
        for group_id in group_ids:
            ledger.close(group_id)

    def test_each_is_taken_once(self, ledger):
        now = time.time()
        group_ids = {start(ledger, ["a"], due=now - 1) for _ in range(20)}

        taken = at_once([lambda: ledger.take_due(now, now + LATER, 8)] * THREADS)

        taken = [group_id for ids in taken for group_id in ids if group_id in group_ids]
        assert len(taken) == len(set(taken))
        while found := ledger.take_due(now, now + LATER, 8):
            taken += [group_id for group_id in found if group_id in group_ids]
        assert sorted(group_ids) == sorted(taken)

    def test_look_again_says_when(self, ledger, group_id):
        now = time.time()

        ledger.look_again(group_id, now + 10)

        assert not is_due(ledger, group_id, now + 9)
        assert is_due(ledger, group_id, now + 11)

    def test_unknown_chord_is_never_due(self, ledger):
        group_id = uuid()

        ledger.look_again(group_id, 1.0)

        assert not is_due(ledger, group_id, time.time())
        assert ledger.read(group_id) is None

    def test_chord_that_has_ended_is_never_due(self, ledger, group_id):
        ledger.close(group_id)

        assert not is_due(ledger, group_id, time.time() + 2 * LATER)


class TestAdding:
    def test_members_come_after_those_of_the_header(self, ledger, group_id):
        assert ledger.add(group_id, [["d", "e"], "f"])

        assert 6 == ledger.read(group_id).size
        assert ["a", ["b"], "c", ["d", "e"], "f"] == ledger.claim(group_id).header

    def test_members_may_come_before_those_of_the_header(self, ledger):
        group_id = start(ledger, None)

        assert ledger.add(group_id, ["d"])
        ledger.set_header(group_id, ["a"])

        assert 2 == ledger.read(group_id).size
        assert {"a", "d"} == set(ledger.claim(group_id).header)

    def test_members_that_come_at_once_are_all_there(self, ledger, group_id):
        members = [uuid() for _ in range(16)]

        assert all(
            at_once(lambda member=member: ledger.add(group_id, [member]) for member in members)
        )

        assert 19 == ledger.read(group_id).size
        header = ledger.claim(group_id).header
        assert ["a", ["b"], "c"] == header[:3]
        assert sorted(members) == sorted(header[3:])

    def test_chord_that_is_being_ended_takes_none(self, ledger, group_id):
        ledger.claim(group_id)

        assert not ledger.add(group_id, ["d"])
        assert 3 == ledger.read(group_id).size

    @in_sql
    def test_unknown_chord_takes_none(self, ledger):
        assert not ledger.add(uuid(), ["d"])


class TestClosing:
    @in_sql
    def test_nothing_is_left(self, ledger, group_id):
        ledger.count(group_id, Part("a", b"payload"))

        for _ in range(2):
            ledger.close(group_id)

        assert ledger.read(group_id) is None
        assert set() == ledger.counted(group_id)

    @in_redis
    def test_only_the_mark_is_left(self, ledger, group_id):
        count(ledger, group_id, "abc")
        ledger.add(group_id, ["d"])
        mark = ledger.key(group_id, ".c")

        ledger.close(group_id)

        assert {mark} == keys_of(ledger)
        assert b"done" == ledger.backend.client.get(mark)

    def test_closed_twice_is_closed(self, ledger, group_id):
        for _ in range(2):
            ledger.close(group_id)

        assert [None] == count(ledger, group_id, "a")
        assert set() == counted(ledger, group_id)

    @in_sql
    def test_chords_without_progress_are_forgotten(self, ledger, group_id):
        abandoned = start(ledger, ["a", "b"])
        count(ledger, abandoned, "a")
        rewrite(ledger, abandoned, "progressed", 100.0)

        assert 0 == ledger.forget_abandoned(100)
        assert 1 == ledger.forget_abandoned(101)
        assert ledger.read(abandoned) is None
        assert set() == ledger.counted(abandoned)
        assert ledger.read(group_id)

    @pytest.mark.parametrize("kind", on("postgresql", "mysql"))
    def test_part_that_is_counted_while_its_chord_is_closed_leaves_nothing(self, ledger):
        group_id = start(ledger, ["a", "b"])
        other = DatabaseLedger(ledger.backend)
        counted_meanwhile = []

        @sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
        def count_meanwhile(connection, cursor, statement, *_):
            is_row = statement.startswith(f"DELETE FROM {ledger.tables.chord.name} ")
            if is_row and not counted_meanwhile:
                counted_meanwhile.append("a")
                other.count(group_id, Part("a"))

        try:
            ledger.close(group_id)
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", count_meanwhile)

        assert ["a"] == counted_meanwhile
        assert set() == ledger.counted(group_id)

    @in_sql
    def test_members_without_their_chord_are_forgotten(self, ledger, group_id):
        count(ledger, group_id, "a")
        left = start(ledger, ["b", "c"])
        count(ledger, left, "b")
        # As if whoever closed it had died between the two.
        ledger._write(ledger.tables.remove, left)

        assert 0 == ledger.forget_abandoned(100)

        assert set() == ledger.counted(left)
        assert {"a"} == ledger.counted(group_id)


class TestManyChords:
    def test_all_live_ones_are_told(self, ledger, group_id):
        other = start(ledger, ["d"])

        assert {group_id, other} <= set(ledger.group_ids())
        ledger.close(other)
        assert other not in ledger.group_ids()

    def test_they_are_read_together(self, ledger, group_id):
        other = start(ledger, ["d", "e"])
        count(ledger, other, "d")

        found = ledger.read_all([group_id, other, "unknown"])

        assert {group_id, other} == found.keys()
        assert [(3, 0), (2, 1)] == [
            (found[id_].size, found[id_].returned) for id_ in (group_id, other)
        ]
        assert ["a", ["b"], "c"] == found[group_id].header
        ledger.close(other)

    def test_members_that_failed_are_told(self, ledger, group_id):
        members = {uuid(): state for state in ("SUCCESS", "FAILURE", "REVOKED", "FAILURE")}
        other = start(ledger, [*members])
        for index, (task_id, state) in enumerate(members.items()):
            value = "FAILURE" if state == "SUCCESS" else ValueError(state)
            ledger.backend.store_result(task_id, value, state)
            if index < 3:
                request = Context(id=task_id, group_index=index, task="any")
                ledger.count(other, ledger.part_of(request, state, value, is_ignored=False))

        assert {group_id: 0, other: 2} == ledger.failed([group_id, other])
        ledger.close(other)


def keys_of(ledger):
    """Return the keys of this test."""
    name = ledger.backend.app.main
    return set(ledger.backend.client.scan_iter(f"{name}:*", count=1000))


def everlasting(ledger):
    """Return the keys of this test that never expire."""
    return {key for key in keys_of(ledger) if ledger.backend.client.ttl(key) == -1}


class TestExpiry:
    """On Redis every key goes away by itself."""

    @pytest.fixture(params=[600, None], ids=["results expire", "results never expire"])
    def ledger(self, request, require, redis_ledger):
        require("redis")
        return redis_ledger(result_expires=request.param)

    @pytest.mark.parametrize("timeout", [None, 10.0])
    def test_at_every_stage(self, ledger, timeout):
        group_id, now = uuid(), time.time()
        claims = []
        stages = {
            "open": lambda: ledger.open(group_id, None, b"body", now, timeout),
            "early member": lambda: ledger.add(group_id, ["d"]),
            "part before the size": lambda: count(ledger, group_id, "a"),
            "set_header": lambda: ledger.set_header(group_id, ["a", "b"]),
            "add": lambda: ledger.add(group_id, ["e"]),
            "take_due": lambda: ledger.take_due(now + 1, now + 2, 10),
            "look_again": lambda: ledger.look_again(group_id, now + 3),
            "read": lambda: ledger.read(group_id),
            "claim": lambda: claims.append(ledger.claim(group_id)),
            "renew": lambda: ledger.renew(claims[-1]),
            "release": lambda: ledger.release(claims[-1]),
            "last part": lambda: claims.extend(count(ledger, group_id, "bde")),
            "release_all": lambda: ledger.release_all(),
            "close": lambda: ledger.close(group_id),
            "late part": lambda: count(ledger, group_id, "a"),
            "late look": lambda: ledger.look_again(group_id, now),
        }
        left = {}
        for stage, step in stages.items():
            step()
            left[stage] = everlasting(ledger)

        assert {stage: set() for stage in stages} == left
        assert claims[-1]

    @pytest.mark.parametrize("is_aging", [True, False])
    def test_is_renewed_by_a_part_when_a_tenth_is_over(self, ledger, is_aging):
        group_id, client = start(ledger, ["a", "b", "c"], timeout=10.0), ledger.backend.client
        count(ledger, group_id, "a")
        record = ledger.key(group_id, ".chordguard")
        keys = {record, ledger.key(group_id, ".j"), ledger.key(group_id, ".s")}
        if is_aging:
            client.hincrbyfloat(record, "renewed", -0.2 * SPARE_SECONDS)
        for key in keys:
            client.expire(key, 60)

        count(ledger, group_id, "b")

        lives = {key for key in keys if client.ttl(key) > SPARE_SECONDS}
        assert (keys if is_aging else set()) == lives

    def test_of_a_chord_that_was_started_without_the_patches(self, ledger):
        group_id = uuid()

        ledger.set_size(group_id, 2)
        assert set() == everlasting(ledger)
        assert [None] == count(ledger, group_id, "a")
        assert set() == everlasting(ledger)
        assert all(count(ledger, group_id, "b"))
        assert set() == everlasting(ledger)

    def test_of_a_chord_that_was_started_without_the_patches_and_takes_members(self, ledger):
        ledger.add(uuid(), ["d"])

        assert set() == everlasting(ledger)

    def test_of_a_chord_that_has_ended_and_takes_members(self, ledger):
        group_id = start(ledger, ["a"])
        ledger.close(group_id)

        assert not ledger.add(group_id, ["d"])

        assert set() == everlasting(ledger)

    @pytest.mark.parametrize("by", ["claim", "count"])
    def test_of_what_is_due_where_it_has_expired(self, ledger, by):
        group_id = start(ledger, ["a"])
        index = ledger.key("chordguard", ".due")
        ledger.backend.client.delete(index)

        if by == "claim":
            ledger.claim(group_id)
        else:
            count(ledger, group_id, "a")

        assert set() == everlasting(ledger)

    def test_chord_that_is_settled_soon_does_not_take_others_along(self, ledger):
        start(ledger, ["a"], timeout=None)
        index = ledger.key("chordguard", ".due")
        before = ledger.backend.client.ttl(index)

        start(ledger, ["a"], timeout=10.0)

        assert before - 5 <= ledger.backend.client.ttl(index)

    def test_chord_that_is_closed_while_it_is_read_leaves_nothing(self, ledger, monkeypatch):
        group_id = start(ledger, ["a", "b"])
        # As if a worker without the patches had counted it.
        ledger.backend.client.zadd(ledger.key(group_id, ".j"), {part_of(ledger, "a").payload: 0})
        run = ledger._run

        def close_first(name, *args):
            if name == "note":
                run("close", group_id, group_id, 9, 1, 0)
            return run(name, *args)

        monkeypatch.setattr(ledger, "_run", close_first)
        assert ledger.read(group_id)

        assert set() == everlasting(ledger)


@in_redis
class TestWorkersWithoutThePatches:
    """On Redis they count on the same keys."""

    @pytest.fixture
    def stock(self, ledger, redis_ledger, monkeypatch):
        """Return a function that counts a part as Celery alone does."""
        backend = redis_ledger().backend
        # There Celery 5.2 looks for nested headers.
        monkeypatch.setattr(celery._state._tls, "current_app", backend.app)

        def count(group_id, task_id, index=0, body=None):
            backend.on_chord_part_return(
                request_of(task_id, index, group=group_id, chord=body), "SUCCESS", task_id
            )

        return count

    @pytest.fixture
    def body(self, ledger):
        return tasks.named(ledger.backend.app).collect.s().set(task_id=uuid())

    def test_their_parts_are_progress(self, ledger, group_id, stock):
        rewrite(ledger, group_id, "progressed", 1.0)
        stock(group_id, "a")

        record = ledger.read(group_id)

        assert 1 == record.returned
        assert time.time() - 60 < record.progressed
        assert record.progressed == ledger.read(group_id).progressed

    def test_they_and_we_count_one_chord(self, ledger, group_id, stock):
        stock(group_id, "a", 0)
        stock(group_id, "b", 1)

        (claim,) = count(ledger, group_id, "c")

        assert ["a", ["b"], "c"] == claim.header
        assert {"a", "b", "c"} == ledger.collect(claim)[1].keys()

    def test_what_they_counted_is_not_uncounted(self, ledger, stock):
        ids = [uuid(), uuid()]
        group_id = start(ledger, ids)
        for task_id in ids:
            ledger.backend.store_result(task_id, 1, "SUCCESS")
        stock(group_id, ids[0])

        found = ledger.outstanding({group_id: ids})[group_id]

        assert ids[1:] == [result.task_id for result in found.uncounted]

    def test_chord_that_they_started_is_counted_and_ended(self, ledger, redis_ledger, stock):
        group_id = uuid()
        redis_ledger().backend.set_chord_size(group_id, 2)
        stock(group_id, "a", 0)

        (claim,) = count(ledger, group_id, "b")

        assert claim.header is None
        header, results = ledger.collect(claim)
        assert ["a", "b"] == header
        assert {"a", "b"} == results.keys()
        assert ledger.read(group_id) is None

    def test_their_nested_header_is_collected_as_it_is(self, ledger, redis_ledger, stock):
        backend, group_id = redis_ledger().backend, uuid()
        app, ids = backend.app, [uuid(), uuid()]
        inner = app.GroupResult(uuid(), [app.AsyncResult(ids[1])])
        backend.apply_chord((group_id, [app.AsyncResult(ids[0]), inner]), None)
        backend.set_chord_size(group_id, 2)

        claims = count(ledger, group_id, ids)

        assert [ids[0], [ids[1]]] == ledger.collect(claims[1])[0]

    def test_chord_that_they_ended_is_over(self, ledger, group_id, stock, body):
        stock(group_id, "a", 0, body)
        assert 1 == ledger.read(group_id).returned
        stock(group_id, "b", 1, body)
        stock(group_id, "c", 2, body)

        assert ledger.read(group_id).is_over

    def test_chord_that_they_ended_is_not_claimed_any_more(self, ledger, group_id, stock, body):
        count(ledger, group_id, "a")
        stock(group_id, "b", 1, body)
        stock(group_id, "c", 2, body)

        assert ledger.read(group_id).claimed_until <= time.time()

    def test_chord_that_they_ended_stays_over_when_a_part_comes_late(
        self, ledger, group_id, stock, body
    ):
        for index, task_id in enumerate("abc"):
            ledger.backend.store_result(task_id, task_id, "SUCCESS")
            stock(group_id, task_id, index, body)

        stock(group_id, "a", 0, body)

        assert ledger.read(group_id).is_over

    def test_chord_that_they_counted_and_ended_alone_is_over(self, ledger, group_id, stock, body):
        for index, task_id in enumerate("abc"):
            ledger.backend.store_result(task_id, task_id, "SUCCESS")
            stock(group_id, task_id, index, body)

        assert ledger.read(group_id).is_over


@in_redis
class TestScripts:
    def test_server_that_does_not_know_them_gets_their_text(self, ledger, monkeypatch):
        def forgotten(name):
            return script(name)[0], "0" * 40

        script = chordguard.ledger.redis._script
        monkeypatch.setattr("chordguard.ledger.redis._script", forgotten)
        group_id = start(ledger, ["a", "b"])

        assert [None, True] == [claim and True for claim in count(ledger, group_id, "ab")]

    @pytest.mark.parametrize("is_ordered", [True, False])
    def test_parts_are_kept_as_celery_keeps_them(self, ledger, is_ordered):
        ledger.backend._transport_options["result_chord_ordered"] = is_ordered
        group_id = start(ledger, ["a", "b"])

        parts = [part_of(ledger, "b", 2, index=1), part_of(ledger, "a", 1, index=0)]
        claims = [ledger.count(group_id, part) for part in parts]

        ids = [part.task_id for part in ledger._parts(group_id)]
        assert (["a", "b"] if is_ordered else ["b", "a"]) == ids
        assert ["a", "b"] == ledger.collect(claims[1])[0]

    @pytest.mark.parametrize("size", [1000, 1001])
    def test_claim_comes_with_the_parts_unless_they_are_many(self, ledger, size):
        ids = [uuid() for _ in range(size)]
        group_id = start(ledger, ids)

        *_, claim = [
            ledger.count(group_id, part_of(ledger, task_id, index=index))
            for index, task_id in enumerate(ids)
        ]

        assert (size > 1000) == (claim.parts is None)
        header, results = ledger.collect(claim)
        assert ids == header
        assert set(ids) == set(results)

    def test_member_without_a_place_comes_last(self, ledger):
        group_id = start(ledger, None)
        for task_id, index in (("c", None), ("b", 1), ("a", 0)):
            ledger.count(group_id, part_of(ledger, task_id, index=index))

        assert ["a", "b", "c"] == [part.task_id for part in ledger._parts(group_id)]


class Results:
    """A table that results are stored in."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.table = sa.Table(
            f"results_{uuid()[:8]}", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True)
        )
        self.engine = sa.create_engine(ledger.backend.url)
        self.table.create(self.engine)

    def store_and_count(self, group_id, task_id):
        statement = self.table.insert().values(id=sa.bindparam("result"))
        return self.ledger.store_and_count(
            group_id, Part(task_id), (statement, {"result": task_id})
        )

    def ids(self):
        with self.engine.connect() as connection:
            return set(connection.execute(sa.select(self.table.c.id)).scalars())


@pytest.fixture
def results(ledger):
    results = Results(ledger)
    yield results
    results.table.drop(results.engine)
    results.engine.dispose()


@contextlib.contextmanager
def commits_fail():
    """Lose the connection before each commit."""

    def lose(connection):
        connection.connection.dbapi_connection.close()

    sa.event.listen(Engine, "commit", lose)
    try:
        yield
    finally:
        sa.event.remove(Engine, "commit", lose)


class TestTransactions:
    @pytest.fixture(params=on(*SQL))
    def kind(self, request):
        return request.param

    def test_result_is_stored_and_counted(self, results, ledger, group_id):
        claims = [results.store_and_count(group_id, task_id) for task_id in "abc"]

        assert [None, None] == claims[:2]
        assert ["a", ["b"], "c"] == claims[2].header
        assert {"a", "b", "c"} == results.ids() == ledger.counted(group_id)

    def test_result_that_is_not_stored_is_not_counted(self, results, ledger, group_id):
        results.store_and_count(uuid(), "a")

        with pytest.raises(sa.exc.IntegrityError):
            results.store_and_count(group_id, "a")

        assert set() == ledger.counted(group_id)
        assert 0 == ledger.read(group_id).returned

    @pytest.mark.parametrize("kind", on("sqlite", "mysql"))
    def test_commit_that_fails_stores_and_counts_nothing(self, results, ledger, group_id):
        for task_id in "ab":
            ledger.count(group_id, Part(task_id))

        with commits_fail(), pytest.raises(sa.exc.DBAPIError):
            results.store_and_count(group_id, "c")

        assert set() == results.ids()
        assert {"a", "b"} == ledger.counted(group_id)
        assert (2, 0) == (ledger.read(group_id).returned, ledger.read(group_id).claimed_until)
        assert results.store_and_count(group_id, "c")

    def test_result_of_an_unknown_chord_is_stored(self, results, ledger):
        group_id = uuid()

        assert results.store_and_count(group_id, "a") is None
        assert {"a"} == results.ids()
        assert set() == ledger.counted(group_id)

    def test_result_of_a_part_that_was_counted_is_stored(self, results, ledger, group_id):
        ledger.count(group_id, Part("a"))

        assert results.store_and_count(group_id, "a") is None
        assert {"a"} == results.ids()
        assert 1 == ledger.read(group_id).returned


class Lost:
    """Have the first call done, but seem to have failed."""

    def __init__(self, error, call):
        self.error = error
        self.call = call
        self.is_lost = False

    def __call__(self, *args, **kwargs):
        answer = self.call(*args, **kwargs)
        if not self.is_lost:
            self.is_lost = True
            raise self.error
        return answer


@pytest.fixture
def first_answer_lost(ledger, monkeypatch):
    """Return a context manager in which the first change is made, but seems to have failed."""

    @contextlib.contextmanager
    def in_sql():
        lost = Lost(
            sa.exc.OperationalError("COMMIT", {}, ConnectionError("lost")),
            lambda connection: connection.connection.dbapi_connection.commit(),
        )

        def commit(connection):
            if not lost.is_lost:
                lost(connection)

        sa.event.listen(Engine, "commit", commit)
        try:
            yield
        finally:
            sa.event.remove(Engine, "commit", commit)
        assert lost.is_lost

    @contextlib.contextmanager
    def in_redis():
        client = ledger.backend.client
        for name in ("add", "claim", "close", "count", "due", "look", "renew", "size"):
            client.script_load(chordguard.ledger.redis._script(name)[0])
        error = redis.exceptions.ConnectionError("lost")
        pipeline = type(client.pipeline())
        execute = Lost(error, pipeline.execute)
        script = Lost(error, client.evalsha)
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "execute", lambda *args, **options: execute(*args, **options))
            patched.setattr(client, "evalsha", script)
            yield
        assert execute.is_lost or script.is_lost

    return in_redis if is_redis(ledger.backend) else in_sql


class TestLostAnswers:
    """What was done although it seems to have failed is not done twice."""

    def test_members_that_are_told_are_there_once(self, ledger, first_answer_lost):
        group_id = start(ledger, None)

        with first_answer_lost():
            ledger.set_header(group_id, ["a", ["b"]])

        assert 2 == ledger.read(group_id).size
        assert ["a", ["b"]] == ledger.claim(group_id).header

    def test_members_that_are_added_are_there_once(self, ledger, group_id, first_answer_lost):
        with first_answer_lost():
            assert ledger.add(group_id, [["d"], "e"])

        assert 5 == ledger.read(group_id).size
        assert ["a", ["b"], "c", ["d"], "e"] == ledger.claim(group_id).header

    def test_members_that_are_added_early_are_there_once(self, ledger, first_answer_lost):
        group_id = start(ledger, None)

        with first_answer_lost():
            assert ledger.add(group_id, ["d", "e"])
        ledger.set_header(group_id, ["a"])

        assert 3 == ledger.read(group_id).size

    @in_redis
    def test_members_are_added_once_to_a_chord_that_was_started_without_the_patches(
        self, ledger, first_answer_lost
    ):
        group_id = uuid()

        with first_answer_lost():
            ledger.add(group_id, ["d"])

        assert b"1" == ledger.backend.client.get(ledger.key(group_id, ".t"))

    def test_part_counts_once(self, ledger, group_id, first_answer_lost):
        with first_answer_lost():
            count(ledger, group_id, "a")

        assert 1 == ledger.read(group_id).returned

    def test_last_part_has_the_claim(self, ledger, group_id, first_answer_lost):
        count(ledger, group_id, "ab")

        with first_answer_lost():
            (claim,) = count(ledger, group_id, "c")

        assert ledger.renew(claim)

    def test_who_claims_has_the_claim(self, ledger, group_id, first_answer_lost):
        with first_answer_lost():
            claim = ledger.claim(group_id)

        assert ledger.renew(claim)

    def test_claim_is_renewed_and_given_back(self, ledger, group_id, first_answer_lost):
        claim = ledger.claim(group_id)
        with first_answer_lost():
            assert ledger.renew(claim)
        assert ledger.read(group_id).claimed_until

        with first_answer_lost():
            ledger.release(claim)
        assert 0 == ledger.read(group_id).claimed_until

    def test_chord_is_opened_and_closed(self, ledger, first_answer_lost):
        group_id = uuid()
        with first_answer_lost():
            ledger.open(group_id, ["a"], None, time.time() + LATER, None)
        assert ["a"] == ledger.read(group_id).header

        with first_answer_lost():
            ledger.close(group_id)
        assert ledger.read(group_id) is None
        assert [None] == count(ledger, group_id, "a")
        assert set() == counted(ledger, group_id)


@pytest.fixture
def dropped(ledger):
    """Drop the tables; a function creates them again."""
    engine = sa.create_engine(ledger.backend.url)
    ledger.tables.metadata.drop_all(engine)
    yield lambda: ledger.tables.metadata.create_all(engine)
    ledger.tables.metadata.create_all(engine)
    engine.dispose()


#: How many transactions of the database at hand wait for another one. The table of transactions
#: of InnoDB is not renewed while somebody keeps reading it: there a statement that runs for a
#: second is one that waits.
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE command = 'Query' AND time >= 1 AND db = database() AND id <> connection_id()",
}


class TestRaces:
    @pytest.mark.parametrize("task_id", ["a", "b"], ids=["counted before", "not counted yet"])
    @pytest.mark.parametrize("kind", on(*WAITING))
    def test_part_that_comes_while_the_chord_is_closed_leaves_nothing(
        self, kind, ledger, group_id, task_id
    ):
        ledger.count(group_id, Part("a"))
        tables, this = ledger.tables, {"chord": group_id}
        engine = sa.create_engine(ledger.backend.url)
        # What waits is seen by a transaction that began later.
        watching = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with ThreadPoolExecutor(1) as pool, watching:
            with engine.begin() as closing:
                closing.execute(tables.remove_members, this)
                closing.execute(tables.remove, this)
                claim = pool.submit(ledger.count, group_id, Part(task_id))
                wait_until(
                    lambda: claim.done() or watching.execute(sa.text(WAITING[kind])).scalar(),
                    what="a part that waits",
                )
            assert claim.result() is None
        engine.dispose()

        assert set() == ledger.counted(group_id)
        assert ledger.read(group_id) is None


@in_sql
class TestFailures:
    def test_what_failed_is_tried_again(self, ledger, dropped):
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

    def test_what_fails_each_time_is_raised_and_the_tables_looked_for_again(self, ledger, dropped):
        for call in (lambda: ledger.count(uuid(), Part("a")), lambda: ledger.read(uuid())):
            with pytest.raises(sa.exc.DatabaseError):
                call()

        assert ledger.is_usable()
        assert ledger.read(uuid()) is None

    def test_cleanup_creates_tables_that_were_dropped(self, ledger, dropped):
        assert 0 == ledger.forget_abandoned(time.time())
        assert ledger.read(uuid()) is None


@in_sql
class TestTables:
    def test_several_may_create_them_at_once(self, kind, require, new_database):
        require(*({kind} - {"sqlite"}))
        url = new_database(kind)
        # A result backend creates its own tables first, which do not concern us here.
        ledgers = [ledger_on(url) for _ in range(THREADS)]
        ledgers[0].backend.ResultSession().close()

        assert all(at_once(ledger._create_tables for ledger in ledgers))

        tables = sa.inspect(sa.create_engine(url)).get_table_names()
        assert {"chordguard_chord", "chordguard_chord_member"} <= set(tables)


def test_tables_are_where_the_app_wants_them():
    app = Celery("ledger", broker="memory://", set_as_current=False)

    def names(**settings):
        app.conf.update({"database_table_names": {}, "database_table_schemas": {}, **settings})
        tables = Tables.of(app)
        return tables.chord.fullname, tables.member.fullname

    assert ("chordguard_chord", "chordguard_chord_member") == names()
    assert ("s.chordguard_chord", "s.chordguard_chord_member") == names(
        database_table_schemas={"task": "s"}
    )
    assert ("c.chordguard_chord", "c.chordguard_chord_member") == names(
        database_table_schemas={"task": "s", "chord": "c"}
    )
    assert ("c.x", "m.y") == names(
        database_table_names={"chord": "x", "chord_member": "y"},
        database_table_schemas={"chord": "c", "chord_member": "m"},
    )
    assert Tables.of(app) is Tables.of(app)


@in_redis
def test_reading_is_tried_again(ledger, group_id, monkeypatch):
    execute, failures = Redis.execute_command, [RedisConnectionError("cut")]

    def fail_once(*args, **kwargs):
        if failures:
            raise failures.pop()
        return execute(*args, **kwargs)

    monkeypatch.setattr(Redis, "execute_command", fail_once)

    assert group_id == ledger.read(group_id).group_id
    assert not failures
