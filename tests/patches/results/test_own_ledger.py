"""A ledger with a store of its own, beside every result backend."""

from __future__ import annotations

import re
import time

import pytest
import sqlalchemy as sa
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError

from chordguard import SettingError, install_patches, patch_report, tolerant
from chordguard.errors import CannotTell
from chordguard.ledger.access import bounded_ledger, ledger_of, ledger_of_kind
from chordguard.ledger.redis import RedisLedger
from chordguard.ledger.sql import DatabaseLedger
from chordguard.ledger.tables import DEFAULT_NAMES
from tests import tasks as declared_tasks
from tests.harness import UNLOCK, delete_keys, running_worker, wait_until

#: Each chord has to end by its last part.
pytestmark = pytest.mark.cluster(settings={"chord_unlock_first_delay": 300})

TABLES = {*DEFAULT_NAMES.values()}

on = pytest.mark.parametrize
#: Celery refuses chords there.
on_refusing = on("backend_kind", ["rpc+postgresql", "rpc+redis", "none+postgresql", "none+redis"])
on_rpc = on("backend_kind", ["rpc+postgresql", "rpc+redis"])
on_redis = on("backend_kind", ["redis+postgresql"])


def names_of_tables(url):
    engine = sa.create_engine(url)
    names = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


def execute(url, *statements):
    """Execute statements, each in a transaction; return the rows of the last one."""
    engine = sa.create_engine(url)
    rows = []
    for statement in statements:
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement))
            rows = list(result.fetchall()) if result.returns_rows else []
    engine.dispose()
    return rows


def forget_results(cluster):
    """Have the result store lose all that it knows."""
    delete_keys(cluster.stack.result_url, f"{cluster.stack.name}:celery-task*")


@on_refusing
def test_celery_refuses_chords(without_fix):
    t = without_fix.tasks

    with pytest.raises(NotImplementedError):
        chord([t.echo.s(1)], t.collect.s()).apply_async()


@on_refusing
class TestWithoutReadableResults:
    @pytest.mark.parametrize("kind", ["list", "generator", "nested", "chain", "chain of chords"])
    def test_chord_gets_the_results(self, with_fix, kind):
        t = with_fix.tasks
        canvas, expected = {
            "list": (chord([t.echo.s(1), t.echo.s(2)], t.collect.s()), [1, 2]),
            "generator": (chord((t.echo.s(n) for n in range(5)), t.collect.s()), [0, 1, 2, 3, 4]),
            "nested": (
                chord([t.echo.s(1), chord([t.echo.s(2)], t.collect.s())], t.collect.s()),
                [1, [2]],
            ),
            "chain": (chain(group(t.echo.s(1), t.echo.s(2)), t.tsum.s(), t.echo.s()), 3),
            "chain of chords": (
                chord([t.echo.s(1)], t.collect.s()) | group(t.echo.s(), t.echo.s()) | t.collect.s(),
                [[1], [1]],
            ),
        }[kind]

        assert expected == with_fix.run(canvas)

    def test_failure_is_tolerated_or_fails_the_chord(self, with_fix, record):
        t = with_fix.tasks
        header = [t.echo.s(1), t.fail.s()]

        assert [1, "ValueError: boom"] == with_fix.run(chord(header, tolerant(t.collect.s())))
        body = t.collect.s().on_error(t.errback_new.s(record=record.path))
        failed = with_fix.outcome(chord(header, body))
        assert "ChordError" == type(failed.value).__name__
        wait_until(lambda: record.count("errback_new"), what="errback")
        assert 1 == record.count("errback_new")

    def test_member_whose_result_is_ignored_brings_it_along(self, with_fix):
        t = with_fix.tasks

        assert [1, 2] == with_fix.run(chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s()))

    def test_member_adds_another_one(self, with_fix):
        t = with_fix.tasks

        added = with_fix.run(chord([t.extend_chord.s(1), t.echo.s(2)], t.collect.s()))
        assert 3 == len(added)

    def test_nothing_is_polled_and_nothing_is_left(self, with_fix):
        t = with_fix.tasks
        ledger = ledger_of(with_fix.app.backend)

        with_fix.run(chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))

        wait_until(lambda: [] == ledger.group_ids(), what="no live chord")
        assert UNLOCK not in with_fix.worker.log_text()


@on_rpc
class TestGet:
    """A result on `rpc://` is a message to the process that started the chord."""

    def test_value_of_the_body(self, with_fix):
        t = with_fix.tasks

        assert [1, 2] == chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).delay().get(timeout=20)

    def test_value_of_a_tolerant_body(self, with_fix):
        t = with_fix.tasks
        canvas = chord([t.echo.s(1), t.fail.s()], tolerant(t.collect.s()))

        assert [1, "ValueError: boom"] == canvas.delay().get(timeout=20)

    def test_error_of_a_member(self, with_fix):
        t = with_fix.tasks

        with pytest.raises((ValueError, ChordError)):
            chord([t.echo.s(1), t.fail.s()], t.collect.s()).delay().get(timeout=20)

    def test_value_of_a_body_that_is_replaced(self, with_fix):
        t = with_fix.tasks

        assert [1, 2] == chord([t.echo.s(1), t.echo.s(2)], t.replace_with.s()).delay().get(
            timeout=20
        )

    def test_value_of_a_body_that_is_replaced_by_a_group(self, with_fix):
        t = with_fix.tasks
        body = t.replace_with_group.s()

        assert [1, 2] == chord([t.echo.s(1), t.echo.s(2)], body).delay().get(timeout=20)


class TestResultStoreThatForgets:
    def waiting_chord(self, cluster, gate):
        """Start a chord of which two members are done; return its result."""
        t = cluster.tasks
        header = [t.echo.s(1), t.echo.s({"a": 2}), t.wait_for_file.s(gate.path, 3)]
        result = chord(header, t.collect.s()).apply_async()
        ledger = ledger_of(cluster.app.backend)
        wait_until(lambda: ledger.read(result.parent.id).returned == 2, what="two parts")
        return result

    @on_redis
    def test_chord_has_all_values(self, with_fix, gate):
        result = self.waiting_chord(with_fix, gate)

        forget_results(with_fix)
        gate.open()

        assert [1, {"a": 2}, 3] == with_fix.run(result)

    def test_chord_ends_without_the_fix_only_with_the_store(self, clusters, gate):
        settings = {"chord_fix_own_ledger": False, "chord_timeout": 2, "chord_watchdog_interval": 1}
        with clusters.alone("redis+postgresql", settings=settings) as cluster:
            result = self.waiting_chord(cluster, gate)
            forget_results(cluster)
            gate.open()
            wait_until(lambda: result.parent.results[2].ready(), what="the last member")

            assert not result.successful()


def test_tables_of_the_ledger_are_not_beside_the_results(clusters, servers):
    server = servers.get("postgresql")
    url = server.kind.create_database(server)
    try:
        with clusters.alone("postgresql", settings={"chord_ledger_url": url}) as cluster:
            t = cluster.tasks
            assert [1, 2] == cluster.run(chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))
            assert TABLES == names_of_tables(url)
            assert not TABLES & names_of_tables(cluster.stack.database_url)
            assert UNLOCK not in cluster.worker.log_text()
    finally:
        server.kind.drop_database(server, url)


#: The database answers each part as one that is shut down.
GO_AWAY = (
    """CREATE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '57P01'; END $$""",
    "CREATE TRIGGER away BEFORE INSERT ON chordguard_chord_member EXECUTE FUNCTION go_away()",
)
COME_BACK = "DROP TRIGGER away ON chordguard_chord_member"


class TestLedgerThatIsAway:
    def test_chord_is_not_started_where_nobody_else_counts(self, clusters):
        settings = {"chord_ledger_url": "redis://127.0.0.1:1/0", "redis_retry_on_timeout": False}
        cluster = clusters("rpc+postgresql")
        app = Celery("away", broker=cluster.stack.broker_url, set_as_current=False)
        app.conf.update({**cluster.config["settings"], **settings})
        declared_tasks.register(app)
        install_patches(app)
        t = declared_tasks.named(app)
        ledger_of(app.backend).backend.retry_policy = {"max_retries": 0}

        with pytest.raises(Exception, match="refused"):
            chord([t.echo.s(1)], t.collect.s(), app=app).apply_async()
        app.close()

    def test_part_is_found_again(self, clusters, gate):
        """The task's own result is stored; the watchdog counts it when the ledger is back."""
        settings = {"chord_watchdog_interval": 1}
        with clusters.alone("redis+postgresql", settings=settings) as cluster:
            t, url = cluster.tasks, cluster.stack.ledger_url
            canvas = chord([t.echo.s(1), t.wait_for_file.s(gate.path, {"a": 2})], t.collect.s())
            result = canvas.apply_async()
            ledger = ledger_of(cluster.app.backend)
            wait_until(lambda: ledger.read(result.parent.id).returned == 1, what="a part")
            execute(url, *GO_AWAY)
            gate.open()
            assert {"a": 2} == cluster.run(result.parent.results[1])
            what = "Could not count a member of chord"
            wait_until(lambda: what in cluster.worker.log_text(), what="a part that is not counted")
            execute(url, COME_BACK)

            assert [1, {"a": 2}] == cluster.run(result)

    def test_chord_is_settled_where_the_result_cannot_be_read(self, clusters, gate):
        settings = {"chord_watchdog_interval": 1, "chord_timeout": 3}
        with clusters.alone("rpc+postgresql", settings=settings) as cluster:
            t, url = cluster.tasks, cluster.stack.ledger_url
            result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s()).delay()
            ledger = ledger_of(cluster.app.backend)
            wait_until(lambda: ledger.read(result.parent.id).returned == 1, what="a part")
            execute(url, *GO_AWAY)
            gate.open()
            assert 2 == cluster.run(result.parent.results[1])
            what = "Could not count a member of chord"
            wait_until(lambda: what in cluster.worker.log_text(), what="a part that is not counted")
            execute(url, COME_BACK)

            outcome = cluster.outcome(result)
            assert "no result of 1 of 2 header tasks" in str(outcome.value)
            assert result.parent.results[1].id in str(outcome.value)


@on("results", ["redis", "postgresql"])
def test_chord_that_was_started_without_the_setting_is_counted_as_before(
    clusters, servers, results
):
    """So a fleet whose processes get the setting one after the other loses nothing."""
    server = servers.get("postgresql")
    url = server.kind.create_database(server)
    try:
        with clusters.alone(results) as cluster:
            t = cluster.tasks
            cluster.worker.stop()
            result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
            config = cluster.config
            config = {**config, "settings": {**config["settings"], "chord_ledger_url": url}}
            with running_worker(config):
                assert [1, 2] == cluster.run(result)
    finally:
        server.kind.drop_database(server, url)


def test_result_that_cannot_be_encoded_fails_its_member(clusters):
    """Without a result backend nobody else finds that out."""
    cluster = clusters("none+postgresql")
    t = cluster.tasks

    outcome = cluster.run(chord([t.unsendable.s(), t.echo.s(2)], tolerant(t.collect_types.s())))

    assert ["EncodeError", "int"] == outcome


class TestSetting:
    @pytest.fixture
    def make(self):
        apps = []

        def make(url, **settings):
            app = Celery("own", broker="memory://", set_as_current=False)
            app.conf.update(chord_ledger_url=url, **settings)
            app.finalize()
            assert app.conf.chord_ledger_url == url
            apps.append(app)
            return app

        yield make
        for app in apps:
            app.close()

    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("redis://localhost/1", RedisLedger),
            ("sqlite:////tmp/never-opened.sqlite", DatabaseLedger),
            ("db+postgresql+psycopg2://u:p@localhost/x", DatabaseLedger),
            ("postgresql+psycopg2://u:p@localhost/x", DatabaseLedger),
        ],
    )
    def test_url_is_that_of_celery_or_of_sqlalchemy(self, make, url, kind):
        app = make(url)
        install_patches(app)

        assert kind is type(ledger_of_kind(app.backend))

    @pytest.mark.parametrize(
        "url",
        [
            "no url with a s3cret",
            17,
            "mongodb://user:s3cret@localhost/x",
            "redis://user:s3cret@localhost:port/x",
            "postgresql+nodriver://user:s3cret@localhost/x",
            "sqlite://",
        ],
    )
    def test_wrong_one_is_refused_without_its_password(self, make, url):
        app = make(url)

        with pytest.raises(SettingError, match="chord_ledger_url") as error:
            install_patches(app)

        assert "s3cret" not in str(error.value)
        assert "expected None, the URL of a SQL database" in str(error.value)

    def test_report_says_where_chords_are_counted(self, make):
        app = make("postgresql+psycopg2://user:s3cret@localhost/x")
        install_patches(app)

        text = str(patch_report(app))
        assert "chords are counted in the ledger at postgresql+psycopg2://localhost/x" in text
        assert "s3cret" not in text

    def test_app_without_it_is_left_alone(self):
        app = Celery("own", broker="memory://", set_as_current=False)

        app.finalize()
        assert app.conf.task_serializer
        assert "it needs chord_ledger_url" == install_patches(app)["own_ledger"].reason
        with pytest.raises(NotImplementedError):
            app.backend.ensure_chords_allowed()
        app.close()


def test_what_is_away_is_told_without_its_password():
    app = Celery("own", broker="memory://", set_as_current=False)
    app.conf.chord_ledger_url = "redis://user:s3cret@127.0.0.1:1/0"
    install_patches(app)
    started = time.monotonic()
    where = re.escape("the ledger at redis://127.0.0.1:1/0 cannot be read")
    with pytest.raises(CannotTell, match=where) as error, bounded_ledger(app) as ledger:
        ledger.group_ids()
    assert time.monotonic() - started < 10
    assert "s3cret" not in str(error.value)
    app.close()
