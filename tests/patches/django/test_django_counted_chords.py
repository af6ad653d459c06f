from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from celery import chain, chord, group

from chordguard import tolerant
from chordguard.engine.versions import celery_5_7, celery_version
from chordguard.ledger.access import ledger_of
from chordguard.ledger.counters import LARGE
from tests.django.backends import on_all, on_both, on_postgresql, on_sqlite
from tests.harness import wait_until

from_5_7 = pytest.mark.skipif(
    celery_version() < celery_5_7, reason="Celery fails the member whose process dies"
)

#: Seconds within which a chord ends whose members returned before the start was committed.
TOLD_WITHIN = 1.0


def rows_of(group_id):
    """Return how many rows the ledger has of a chord."""
    from django.apps import apps

    models = {"LiveChord": "pk", "CountedMember": "chord_id", "Counter": "chord_id"}
    return {
        name: count
        for name, key in models.items()
        if (count := apps.get_model("chordguard", name).objects.filter(**{key: group_id}).count())
    }


def wait_until_forgotten(*group_ids):
    wait_until(lambda: not any(map(rows_of, group_ids)), what="an empty ledger")


def nested(t):
    return chord(
        [
            t.slow.s(1, 0.3),
            chain(t.echo.s(2), group(t.add.s(0), t.add.s(1))),
            chord([t.echo.s(4), t.echo.s(5)], t.tsum.s()),
            t.echo.s(8),
        ],
        t.collect.s(),
    )


def run_twice(t, gate):
    return chord([t.twice.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s())


def let_run_twice(cluster, gate):
    """Start a chord of which one member runs twice before the other one returns."""
    result = run_twice(cluster.tasks, gate).apply_async()
    done = f"Task tests.twice[{result.parent[0].id}] succeeded"
    wait_until(lambda: cluster.worker.log_text().count(done) == 2, what="two runs")
    gate.open()
    return result


class TestMemberThatRunsTwice:
    # With that fix the chord that was counted down too early is polled.
    @pytest.mark.cluster(concurrency=3, settings={"chord_fix_django_tolerant_parts": False})
    @on_sqlite
    def test_loses_its_chord(self, without_fix, gate):
        result = let_run_twice(without_fix, gate)

        assert without_fix.outcome(result, quiet=1.2).hung

    @pytest.mark.cluster(concurrency=3)
    @on_all
    def test_is_counted_once(self, with_fix, gate):
        result = let_run_twice(with_fix, gate)

        assert [1, 2] == with_fix.outcome(result).value


class TestWorkerThatIsKilled:
    """The child of the pool dies; its worker starts another one."""

    def dies(self, clusters, tmp_path, backend_kind, backend, point, **options):
        settings = {"chord_watchdog_interval": 0.3, **options.pop("settings", {})}
        faults = {
            "backend": backend,
            "points": [point],
            "share": 1.0,
            "most": 1,
            "folder": str(tmp_path),
        }
        return clusters.alone(
            backend_kind, faults=faults, concurrency=1, settings=settings, **options
        )

    @pytest.mark.stock
    @pytest.mark.alone
    @pytest.mark.parametrize(
        "point", [pytest.param(("store", "after"), marks=from_5_7), ("publish", "before")]
    )
    @on_sqlite
    def test_loses_the_chord(self, clusters, tmp_path, backend_kind, point):
        dying = self.dies(clusters, tmp_path, backend_kind, "django alone", point, patched=False)
        with dying as cluster:
            t = cluster.tasks
            assert cluster.outcome(chord([t.echo.s(1)] * 2, t.collect.s()), quiet=2).hung

    @pytest.mark.alone
    @pytest.mark.parametrize(
        "point",
        [
            ("store", "after"),
            pytest.param(("count", "before"), marks=pytest.mark.nightly),
            pytest.param(("publish", "before"), marks=pytest.mark.nightly),
            pytest.param(("close", "before"), marks=pytest.mark.nightly),
        ],
    )
    @on_postgresql
    def test_is_made_up_for(self, clusters, tmp_path, backend_kind, point):
        with self.dies(clusters, tmp_path, backend_kind, "django", point) as cluster:
            t = cluster.tasks
            result = tolerant(chord([t.echo.s(1), t.echo.s(2)], t.collect.s())).apply_async()

            value = cluster.outcome(result).value

            if point == ("count", "before"):
                # The result dies with its process: Celery says that the member was lost.
                assert 2 == value[1]
                assert str(value[0]).startswith("WorkerLostError")
            else:
                # Up to 5.6 Celery may store that it was lost, over its result.
                lost = [str(each).startswith("WorkerLostError") for each in value]
                assert [1, 2] == value or (celery_version() < celery_5_7 and sum(lost) == 1)
            wait_until_forgotten(result.parent.id)


class TestTransaction:
    def start(self, cluster, canvas, record=None):
        """Start a chord in a transaction that is committed when its members have returned."""
        from django.db import transaction

        returned = {}
        with transaction.atomic():
            result = canvas.apply_async()
            ids = [member.id for member in result.parent]

            def all_returned():
                log = cluster.worker.log_text()
                returned.update({id_: f"[{id_}] succeeded" in log for id_ in ids})
                return all(returned.values())

            if cluster.stack.database == "sqlite":
                # What writes waits for this transaction.
                time.sleep(0.5)
            else:
                wait_until(all_returned, what="members that returned")
        return result, time.monotonic()

    @on_both
    def test_members_that_return_before_its_end_lose_their_chord(self, without_fix, backend_kind):
        if backend_kind == "django-sqlite":
            pytest.skip("there they wait until it has ended")
        t = without_fix.tasks
        result, _ = self.start(without_fix, chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))

        assert without_fix.outcome(result, quiet=1.2).hung

    @on_all
    def test_members_that_return_before_its_end_are_counted_then(self, with_fix):
        t = with_fix.tasks
        for canvas, value in (
            (chord([t.echo.s(1), t.echo.s(2)], t.collect.s()), [1, 2]),
            (chord([t.echo.s(1), t.ignored_result.s(2)], t.collect.s()), [1, 2]),
            (chord((t.echo.s(i) for i in range(3)), t.collect.s()), [0, 1, 2]),
            (tolerant(chord([t.ignored_result.s(2)] * 2, t.collect.s())), [2, 2]),
        ):
            result, committed = self.start(with_fix, canvas)
            assert value == with_fix.outcome(result).value
            assert time.monotonic() - committed < TOLD_WITHIN
            wait_until_forgotten(result.parent.id)

    @on_postgresql
    def test_one_that_is_rolled_back_leaves_nothing(self, with_fix):
        from django.db import transaction

        t = with_fix.tasks
        with transaction.atomic():
            result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()
            transaction.set_rollback(True)

        ids = [member.id for member in result.parent]
        wait_until(
            lambda: all(f"[{id_}] succeeded" in with_fix.worker.log_text() for id_ in ids),
            what="members that returned",
        )
        assert {} == rows_of(result.parent.id)
        assert "PENDING" == result.state

    @on_postgresql
    def test_many_that_commit_while_members_return(self, with_fix):
        """Whichever comes first: each member is counted by one of the two."""
        from django.db import connections, transaction

        t = with_fix.tasks
        results = []

        def start_some(offset):
            for number in range(8):
                with transaction.atomic():
                    members = [t.echo.s(i) for i in range(3)]
                    results.append(chord(members, t.collect.s()).apply_async())
                    time.sleep(0.004 * ((number + offset) % 8))
            connections.close_all()

        threads = [threading.Thread(target=start_some, args=(offset,)) for offset in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [[0, 1, 2]] * 24 == [
            with_fix.outcome(result, deadline=10).value for result in results
        ]


class TestStartedAgain:
    def start_twice(self, t):
        canvas = chord([t.echo.s(1), t.echo.s(2)], t.collect.s())
        canvas.freeze()
        return canvas.apply_async(), canvas.apply_async()

    @on_sqlite
    def test_raises(self, without_fix):
        from django.db import IntegrityError

        with pytest.raises(IntegrityError):
            self.start_twice(without_fix.tasks)

    @on_all
    def test_goes_on(self, with_fix):
        for result in self.start_twice(with_fix.tasks):
            assert [1, 2] == with_fix.outcome(result).value


class TestMembersThatAreAdded:
    @on_sqlite
    def test_are_refused(self, without_fix):
        t = without_fix.tasks
        ended = without_fix.outcome(chord([t.extend_chord.s(1), t.echo.s(2)], t.collect.s()))

        assert "NotImplementedError" in repr(ended.value)

    @on_all
    def test_belong_to_the_chord(self, with_fix):
        t = with_fix.tasks
        canvas = chord([t.extend_chord.s(1), t.echo.s(2)], t.collect.s())

        assert ["extended", 2, 1] == with_fix.run(canvas)


class TestChord:
    @on_all
    def test_of_every_kind_ends_and_leaves_nothing(self, with_fix):
        t = with_fix.tasks
        large = chord([t.echo.s(i) for i in range(LARGE + 2)], t.collect.s())
        lazy = chord((t.echo.s(i) for i in range(5)), t.collect.s())
        expected = [
            (nested(t), [1, [2, 3], 9, 8]),
            (chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s()), [1, 2]),
            (lazy, [0, 1, 2, 3, 4]),
            (large, list(range(LARGE + 2))),
        ]
        started = [(canvas.apply_async(), value) for canvas, value in expected]

        for result, value in started:
            assert value == with_fix.outcome(result).value
        wait_until_forgotten(*(result.parent.id for result, _ in started))

    @on_postgresql
    def test_of_a_process_without_the_patches_is_counted_down(self, with_fix, clusters):
        t = with_fix.tasks
        with_fix.app.conf.chord_fix_django_counted_chords = False
        result = chord([t.echo.s(1), t.echo.s(2)], t.collect.s()).apply_async()

        assert {} == rows_of(result.parent.id)
        assert [1, 2] == with_fix.outcome(result).value

    @on_both
    def test_that_was_lost_is_looked_after(self, clusters, backend_kind):
        """Its member's message is gone: after its timeout it is settled."""
        cluster = clusters(backend_kind, settings={"chord_watchdog_interval": 0.3})
        t = cluster.tasks
        lost = t.echo.s(2).set(queue=f"{cluster.stack.name}-nowhere")
        canvas = tolerant(chord([t.echo.s(1), lost], t.collect.s()), timeout=1)

        value, error = cluster.run(canvas)

        assert (1, "ChordMemberLost") == (value, error.partition(":")[0])


class TestCost:
    """Statements that a worker sends, without BEGIN and COMMIT."""

    @pytest.mark.nightly
    @pytest.mark.alone
    @on_postgresql
    def test_of_a_part_and_of_the_last_one(self, clusters, backend_kind, tmp_path, gate):
        sent = tmp_path / "statements"
        sent.touch()
        with clusters.alone(backend_kind, statements=str(sent), concurrency=2) as cluster:
            t = cluster.tasks
            # Each process looks for the tables once.
            cluster.run(chord([t.slow.s(i, 0.2) for i in range(4)], t.collect.s()))
            for count in (1, 100):
                members = [t.echo.s(i) for i in range(count)]
                header = [*members, t.wait_for_file.s(gate.path, "last")]
                before = sent.stat().st_size
                result = chord(header, t.ignored_result.s()).apply_async()
                ledger = ledger_of(cluster.app.backend)
                group_id = result.parent.id
                wait_until(lambda: ledger.read(group_id).returned == count, what="parts")  # noqa: B023
                parts = (sent.stat().st_size - before) / count
                before = sent.stat().st_size
                gate.open()
                wait_until_forgotten(group_id)
                last = sent.stat().st_size - before
                (tmp_path / "gate").unlink(missing_ok=True)
                # With BEGIN and COMMIT two more.
                assert (4, 7) == (parts, last)


class TestCleanup:
    @on_all
    def test_spares_the_results_of_live_chords(self, with_fix, gate):
        from django.utils import timezone
        from django_celery_results.models import TaskResult

        t = with_fix.tasks
        canvas = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s())
        result = canvas.apply_async()
        other = t.echo.s(3).apply_async()
        ids = [result.parent[0].id, other.id]
        wait_until(lambda: TaskResult.objects.filter(task_id__in=ids).count() == 2)
        TaskResult.objects.update(date_done=timezone.now() - timedelta(days=30))

        with_fix.app.backend.cleanup()

        assert [ids[0]] == list(
            TaskResult.objects.filter(task_id__in=ids).values_list("task_id", flat=True)
        )
        gate.open()
        assert [1, 2] == with_fix.outcome(result).value

    @on_all
    def test_forgets_how_chords_ended_when_their_results_have_expired(self, with_fix, gate):
        from chordguard.django.models import EndedChord

        t = with_fix.tasks
        results = [chord([t.echo.s(n)], t.collect.s()).apply_async() for n in (1, 2)]
        assert [[1], [2]] == [with_fix.outcome(result).value for result in results]
        old, new = (result.parent.id for result in results)
        ended = EndedChord.objects.filter(pk__in=[old, new])
        wait_until(lambda: ended.count() == 2, what="the ends")
        ended.filter(pk=old).update(ended=time.time() - timedelta(days=30).total_seconds())

        with_fix.app.backend.cleanup()

        assert [new] == [each.pk for each in ended.all()]
