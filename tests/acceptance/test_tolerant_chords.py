"""Applications whose chords tolerate failed header tasks, whatever the tasks and workers do."""

from __future__ import annotations

import json
import signal

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.utils import uuid

from chordguard import is_chord_error, split_results, strict, tolerant
from tests.harness import wait_until

TOLERANT = {"chord_propagate_errors": False}
PICKLE = {
    "chord_propagate_errors": False,
    "chord_error_format": "exception",
    "task_serializer": "pickle",
    "result_serializer": "pickle",
    "accept_content": ["pickle", "json"],
}
#: Of which the record is made by a function that is named in the configuration.
OWN_FORMAT = {"chord_propagate_errors": False, "chord_error_format": "json.dumps"}

BOOM = "ValueError: boom"

pytestmark = pytest.mark.cluster(settings=TOLERANT)

two_kinds = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])
#: SQL in both ways: members are counted, or polled.
polled = pytest.mark.cluster(settings={**TOLERANT, "chord_ledger": False})
three_kinds = pytest.mark.parametrize(
    "backend_kind", ["redis", "sqlite", pytest.param("sqlite", marks=polled, id="sqlite-polled")]
)
# Celery does not let root run a worker that accepts pickle.
with_pickle = pytest.mark.cluster(settings=PICKLE, env={"C_FORCE_ROOT": "1"})
#: The configuration is Celery's: errors fail the chord, unless a chord is marked.
unconfigured = pytest.mark.cluster(settings=None)


def failing(t, body=None):
    return chord([t.echo.s(1), t.fail.s()], body or t.collect.s())


@three_kinds
class TestHeaders:
    def test_failed_member_becomes_a_result_in_its_place(self, cluster, record):
        t = cluster.tasks
        body = t.collect.s(record=record.path).on_error(t.errback_new.s(record=record.path))

        value = cluster.run(chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], body))

        assert [1, BOOM, 3] == value
        assert 1 == record.count("body")
        assert 0 == record.count("errback")

    def test_all_members_may_fail(self, cluster):
        t = cluster.tasks

        assert [BOOM] * 3 == cluster.run(chord([t.fail.s()] * 3, t.collect.s()))

    def test_only_member_may_fail(self, cluster):
        t = cluster.tasks

        assert [BOOM] == cluster.run(chord([t.fail.s()], t.collect.s()))

    def test_header_may_be_a_generator(self, cluster):
        t = cluster.tasks
        header = (t.fail.s() if i == 2 else t.echo.s(i) for i in range(5))

        assert [0, 1, BOOM, 3, 4] == cluster.run(chord(header, t.collect.s()))

    def test_nested_groups_keep_their_order(self, cluster):
        t = cluster.tasks
        header = [t.echo.s(1), group(t.fail.s(), group(t.echo.s(3), t.echo.s(4))), t.echo.s(5)]

        assert [1, BOOM, 3, 4, 5] == cluster.run(chord(header, t.collect.s()))

    def test_chain_fails_at_any_step(self, cluster):
        t = cluster.tasks
        header = [
            chain(t.fail.s(), t.add.s(1), t.add.s(1)),
            chain(t.echo.s(1), t.fail_after.s(), t.add.s(1)),
            chain(t.echo.s(1), t.add.s(1), t.fail_after.s()),
            chain(t.echo.s(1), t.add.s(1), t.add.s(1)),
        ]

        assert [BOOM, BOOM, BOOM, 3] == cluster.run(chord(header, t.collect.s()))

    def test_chain_ends_in_a_group(self, cluster):
        t = cluster.tasks
        header = [
            chain(t.fail.s(), group(t.add.s(1), t.add.s(2))),
            t.echo.s(9),
            chain(t.echo.s(1), group(t.add.s(1), t.fail_after.s())),
        ]

        assert [[BOOM, BOOM], 9, [2, BOOM]] == cluster.run(chord(header, t.collect.s()))

    def test_chain_fails_before_a_group_in_its_middle(self, cluster):
        t = cluster.tasks
        header = [
            t.echo.s(9),
            chain(t.fail.s(), group(t.add.s(1), t.add.s(2)), t.tsum.s()),
            chain(t.echo.s(1), group(t.add.s(1), t.add.s(2)), t.tsum.s()),
        ]

        assert [9, BOOM, 5] == cluster.run(chord(header, t.collect.s()))

    def test_chord_in_the_header_tolerates_for_itself(self, cluster):
        t = cluster.tasks
        header = [failing(t), t.echo.s(2), strict(failing(t)), failing(t, t.fail_after.s("body"))]

        inner, value, strict_one, failed_body = cluster.run(chord(header, t.collect.s()))

        assert [1, BOOM] == inner
        assert 2 == value
        assert "boom" in strict_one
        assert "ValueError: body" == failed_body

    def test_members_may_replace_themselves(self, cluster):
        t = cluster.tasks
        header = [
            t.replace_with.s(1),
            t.replace_with_fail.s(),
            t.replace_with_group.s([2, 3]),
            t.replace_with_chord.s([4, 5]),
        ]

        assert [1, BOOM, [2, 3], [4, 5]] == cluster.run(chord(header, t.collect.s()))

    def test_retries_count_when_they_are_over(self, cluster):
        t = cluster.tasks
        header = [t.retry_then.s(1, times=2), t.retry_in_vain.s(), t.echo.s(3)]

        assert [1, "ValueError: gave up", 3] == cluster.run(chord(header, t.collect.s()))

    def test_errback_of_the_member_itself_still_fires(self, cluster, record):
        t = cluster.tasks
        member = t.fail.s().on_error(t.errback_new.s(record=record.path))

        assert [1, BOOM] == cluster.run(chord([t.echo.s(1), member], t.collect.s()))
        # The body may overtake the errback.
        wait_until(lambda: record.count("errback_new"), what="a call of the errback")
        assert 1 == record.count("errback_new")


@three_kinds
class TestBodies:
    def test_body_may_be_a_chain(self, cluster):
        t = cluster.tasks

        assert [1, BOOM] == cluster.run(failing(t, chain(t.collect.s(), t.echo.s())))

    def test_body_may_be_a_group(self, cluster):
        t = cluster.tasks

        value = cluster.run(failing(t, group(t.collect.s(), t.collect.s())))

        assert [[1, BOOM], [1, BOOM]] == value

    def test_body_may_be_a_chord(self, cluster):
        t = cluster.tasks
        body = chord([t.collect.s(), t.fail_after.s()], t.collect.s())

        assert [[1, BOOM], BOOM] == cluster.run(failing(t, body))

    def test_chain_of_chords_goes_on_after_an_error(self, cluster):
        t = cluster.tasks
        canvas = chain(
            group(t.echo.s(1), t.fail.s()),
            t.collect.s(),
            group(t.collect.s(), t.fail_after.s()),
            t.collect.s(),
        )

        assert [[1, BOOM], BOOM] == cluster.run(canvas)

    def test_failing_body_calls_its_errback_once(self, cluster, record):
        t = cluster.tasks
        body = t.fail_after.s("body").on_error(t.errback_new.s(record=record.path))

        outcome = cluster.outcome(failing(t, body))

        assert "FAILURE" == outcome.state
        assert "body" == str(outcome.value)
        wait_until(lambda: record.count("errback_new"), what="errback")
        cluster.run(t.echo.s(0))
        assert 1 == record.count("errback_new")

    def test_get_returns_the_value_of_the_body(self, cluster):
        t = cluster.tasks

        assert [1, BOOM] == failing(t).apply_async().get(timeout=20)

    def test_empty_header_runs_the_body(self, cluster):
        assert [] == cluster.run(chord([], cluster.tasks.collect.s()))


@three_kinds
class TestLostMembers:
    def test_revoked_member_counts_as_failed(self, cluster):
        t = cluster.tasks
        task_id = uuid()
        cluster.app.control.revoke(task_id)
        inspect = cluster.app.control.inspect([cluster.worker.hostname])
        wait_until(
            lambda: task_id in ((inspect.revoked() or {}).get(cluster.worker.hostname) or ()),
            what="revoked",
        )
        header = [t.echo.s(1), t.echo.s(2).set(task_id=task_id)]

        value = cluster.run(chord(header, t.collect.s()), deadline=30)

        assert [1, "TaskRevokedError: revoked"] == value

    def test_time_limits_count_as_failures(self, cluster):
        t = cluster.tasks
        header = [t.exceed_soft_limit.s(), t.echo.s(2), t.exceed_hard_limit.s()]

        soft, value, hard = cluster.run(chord(header, t.collect.s()), deadline=30)

        assert soft.startswith("SoftTimeLimitExceeded: ")
        assert 2 == value
        assert hard.startswith("TimeLimitExceeded: ")

    @pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGABRT])
    def test_killed_pool_process_counts_as_a_failure(self, cluster, signal_number):
        t = cluster.tasks
        header = [t.echo.s(1), t.kill_self.s(int(signal_number))]

        value, lost = cluster.run(chord(header, t.collect.s()), deadline=30)

        assert 1 == value
        assert lost.startswith("WorkerLostError: ")

    def test_redelivered_member_counts_once(self, cluster, tmp_path):
        t = cluster.tasks
        header = [t.echo.s(1), t.kill_self_once.s(2, str(tmp_path / "killed"))]

        assert [1, 2] == cluster.run(chord(header, t.collect.s()), deadline=30)


#: Exceptions of `tasks.FAILURES`: type, and start of the text.
EXCEPTIONS = {
    "value_error": ("ValueError", "ValueError: boom"),
    "no_message": ("ValueError", "ValueError: "),
    "key_error": ("KeyError", "KeyError: 'missing'"),
    "custom": ("CustomError", "CustomError: boom"),
    "two_arguments": ("TwoArgumentError", "TwoArgumentError: 1-2"),
    "unpicklable": ("UnpicklableError", "UnpicklableError: boom"),
    "non_ascii": ("ValueError", "ValueError: žluťoučký \U0001f40e"),
    "long_message": ("ValueError", "ValueError: xxx"),
}


@two_kinds
class TestFormats:
    def test_texts_of_all_kinds_of_exceptions(self, cluster):
        t = cluster.tasks
        kinds = [*EXCEPTIONS, "raising_str"]

        texts = cluster.run(chord([t.fail_with.s(kind) for kind in kinds], t.collect.s()))

        for text, (_, expected) in zip(texts, EXCEPTIONS.values(), strict=False):
            assert expected == text[: len(expected)]
        assert texts[-1].startswith("RaisingStrError")

    def test_records_of_all_kinds_of_exceptions(self, cluster):
        t = cluster.tasks
        kinds = [*EXCEPTIONS, "raising_str"]
        header = [t.echo.s(0), *(t.fail_with.s(kind) for kind in kinds)]
        canvas = tolerant(chord(header, t.collect.s()), error_format="dict")
        result = canvas.apply_async()

        values, records = split_results(cluster.run(result))

        assert [0] == values
        assert list(range(1, len(header))) == [record["index"] for record in records]
        assert [member.id for member in result.parent[1:]] == [
            record["task_id"] for record in records
        ]
        assert {"FAILURE"} == {record["state"] for record in records}
        for record, (exc_type, text) in zip(records, EXCEPTIONS.values(), strict=False):
            assert exc_type == record["exc_type"].rpartition(".")[2]
            assert text == record["text"][: len(text)]
        assert "RaisingStrError" == records[-1]["exc_type"]

    def test_revoked_state_is_in_the_record(self, cluster):
        t = cluster.tasks
        header = [t.echo.s(1), t.echo.s(2).set(expires=-1)]
        canvas = tolerant(chord(header, t.collect.s()), error_format="dict")

        _, (record,) = split_results(cluster.run(canvas))

        assert "REVOKED" == record["state"]

    @pytest.mark.cluster(settings=OWN_FORMAT)
    def test_format_may_be_a_function_of_ones_own(self, cluster):
        _, text = cluster.run(failing(cluster.tasks))

        assert BOOM == json.loads(text)["text"]

    @with_pickle
    def test_body_gets_exception_objects(self, cluster):
        t = cluster.tasks
        body = t.collect.s()

        value, error = cluster.run(chord([t.echo.s(1), t.fail_with.s("custom")], body))

        assert 1 == value
        assert is_chord_error(error)
        assert ("CustomError", "boom") == (type(error).__name__, str(error))

    @with_pickle
    def test_exceptions_that_cannot_be_pickled_do_not_break_the_chord(self, cluster):
        t = cluster.tasks
        kinds = ["two_arguments", "raising_str", "unpicklable", "key_error"]
        # A body that does not ask for the text of its errors.
        body = t.retry_then.s(times=0)

        errors = cluster.run(chord([t.fail_with.s(kind) for kind in kinds], body))

        assert [True] * len(kinds) == [is_chord_error(error) for error in errors]


@two_kinds
class TestHowMuchIsTolerated:
    @pytest.mark.parametrize(
        ("max_errors", "runs"), [(0, False), (1, False), (2, True), (0.5, False), (0.67, True)]
    )
    def test_too_many_failures_fail_the_chord(self, cluster, record, max_errors, runs):
        t = cluster.tasks
        body = t.collect.s(record=record.path).on_error(t.errback_new.s(record=record.path))
        canvas = chord([t.fail.s("one"), t.echo.s(2), t.fail.s("three")], body)

        outcome = cluster.outcome(tolerant(canvas, max_errors=max_errors))

        assert ("SUCCESS" if runs else "FAILURE") == outcome.state, outcome
        assert int(runs) == record.count("body")
        assert int(not runs) == record.count("errback_new")
        if not runs:
            assert isinstance(outcome.value, ChordError)
            assert "ValueError: one" in str(outcome.value)
            assert "ValueError: three" in str(outcome.value)

    @unconfigured
    def test_chord_may_be_tolerant_where_the_configuration_is_not(self, cluster):
        t = cluster.tasks

        assert [1, BOOM] == tolerant(failing(t)).apply_async().get(timeout=20)
        assert [1, BOOM] == cluster.run(failing(t, tolerant(t.collect.s())))
        assert "FAILURE" == cluster.outcome(failing(t)).state

    def test_chord_may_be_strict_where_the_configuration_is_not(self, cluster, record):
        t = cluster.tasks
        body = t.collect.s(record=record.path).on_error(t.errback_new.s(record=record.path))

        outcome = cluster.outcome(strict(failing(t, body)))

        assert "FAILURE" == outcome.state, outcome
        cluster.run(t.echo.s(0))
        assert 0 == record.count("body")
        assert 1 == record.count("errback_new")

    @unconfigured
    def test_strict_chord_stays_as_celery_has_it(self, cluster, record):
        t = cluster.tasks
        body = t.collect.s(record=record.path).on_error(t.errback_new.s(record=record.path))

        outcome = cluster.outcome(failing(t, body))

        assert "FAILURE" == outcome.state, outcome
        assert isinstance(outcome.value, ChordError)
        cluster.run(t.echo.s(0))
        assert 0 == record.count("body")
        assert 1 == record.count("errback_new")


@three_kinds
class TestValuesThatCannotBeSent:
    """Up to 5.6 a SQL result store takes what pickle takes, and the message to the body is JSON."""

    def test_member_counts_as_failed(self, cluster):
        t = cluster.tasks

        canvas = chord([t.echo.s(1), t.unsendable.s(), t.echo.s(3)], t.collect.s())

        first, second, third = cluster.run(canvas)

        assert [1, 3] == [first, third]
        assert second.startswith("EncodeError: ")

    def test_strict_chord_fails_and_names_the_member(self, cluster):
        t = cluster.tasks
        result = strict(chord([t.echo.s(1), t.unsendable.s()], t.collect.s())).apply_async()

        outcome = cluster.outcome(result)

        assert "FAILURE" == outcome.state
        assert f"Dependency {result.parent.results[1].id} raised EncodeError(" in str(outcome.value)

    def test_nested_member_counts_as_failed(self, cluster):
        t = cluster.tasks
        nested = chain(t.echo.s(1), group(t.add.s(1), t.unsendable.si()))

        ((first, second), third) = cluster.run(chord([nested, t.echo.s(3)], t.collect.s()))

        assert [2, 3] == [first, third]
        assert second.startswith("EncodeError: ")


@pytest.mark.parametrize("backend_kind", ["postgresql", "mysql"])
@pytest.mark.parametrize("is_counted", [True, False], ids=["counted", "polled"])
def test_database_servers_hold_tolerant_chords(clusters, backend_kind, is_counted, record):
    cluster = clusters(backend_kind, settings={**TOLERANT, "chord_ledger": is_counted})
    t = cluster.tasks
    body = t.collect.s().on_error(t.errback_new.s(record=record.path))
    fails_first = chain(t.fail.s(), group(t.add.s(1), t.add.s(2)))
    header = [t.echo.s("žluťoučký"), t.fail_with.s("non_ascii"), failing(t), fails_first]
    results = [
        canvas.apply_async()
        for canvas in (
            chord(header, t.collect.s()),
            failing(t, group(t.collect.s(), chain(t.collect.s(), t.echo.s()))),
            tolerant(failing(t), error_format="dict"),
            strict(failing(t, body)),
        )
    ]

    text = EXCEPTIONS["non_ascii"][1]
    assert ["žluťoučký", text, [1, BOOM], [BOOM, BOOM]] == cluster.run(results[0])
    assert [[1, BOOM], [1, BOOM]] == cluster.run(results[1])
    assert [1, BOOM] == [cluster.run(results[2])[0], cluster.run(results[2])[1]["text"]]
    assert "FAILURE" == cluster.outcome(results[3]).state
    assert 1 == record.count("errback_new")


@two_kinds
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_run_tolerant_chords(clusters, backend_kind, pool):
    cluster = clusters(backend_kind, settings=TOLERANT, pool=pool)

    assert [1, BOOM] == cluster.run(failing(cluster.tasks))


@pytest.mark.parametrize("broker_kind", ["rabbitmq"])
@two_kinds
def test_other_brokers_carry_tolerant_chords(cluster):
    assert [1, BOOM] == cluster.run(failing(cluster.tasks))


@pytest.mark.cluster(concurrency=1, settings=None)
@pytest.mark.parametrize(
    "backend_kind", ["redis", pytest.param("postgresql", marks=pytest.mark.nightly)]
)
class TestLongErrors:
    """60 MB of messages: read once, and not handed over nor named in full."""

    COUNT, SIZE = 60, 2**20

    def header(self, t):
        return [t.fail_at_length.s(self.SIZE) for _ in range(self.COUNT)]

    def test_body_gets_the_start_of_each_message(self, cluster):
        t = cluster.tasks
        result = chord(
            self.header(t), tolerant(t.peak.s(), error_format="dict"), app=cluster.app
        ).apply_async()

        peak, length = cluster.run(result, deadline=60)

        assert length < self.COUNT * 10_000
        assert peak < 700 * 1024
        # What the member itself stored is whole.
        member = result.parent.results[-1]
        assert self.SIZE == len(str(member.get(propagate=False)))

    def test_error_of_the_chord_names_the_first_ones(self, cluster):
        t = cluster.tasks
        body = tolerant(t.collect.s(), error_format="dict", max_errors=1)

        error = cluster.outcome(chord(self.header(t), body), deadline=60).value

        assert isinstance(error, ChordError)
        assert str(error).startswith("60 of 60 header tasks failed, at most 1 tolerated: ")
        assert len(str(error)) < 50_000
