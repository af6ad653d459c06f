from __future__ import annotations

import json

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError
from hypothesis import given
from hypothesis import strategies as st

from chordguard import failures
from chordguard.ledger.packing import header_of, leaf_ids
from chordguard.lifecycle import ending
from chordguard.lifecycle.joining import collect
from chordguard.lifecycle.settlement import Settlement
from chordguard.policy import Policy
from chordguard.upstream import signatures
from chordguard.upstream.results import Results, StoredResult
from tests import tasks

FAILED = {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}

TOLERANT = Policy(tolerate=True, error_format="string", max_errors=None, timeout=None)
STRICT = Policy(tolerate=False, error_format="string", max_errors=None, timeout=None)


def done(**values):
    return Results(
        StoredResult(id_, "FAILURE" if value is FAILED else "SUCCESS", value)
        for id_, value in values.items()
    )


class TestCollecting:
    def test_results_come_in_header_order_nested_as_the_header(self):
        results = done(d=4, c=3, b=2, a=1)

        assert [1, [2, [3]], 4] == collect(["a", ["b", ["c"]], "d"], results, STRICT)

    def test_failed_member_is_handed_over(self):
        results = done(a=1, b=FAILED)

        assert [1, "ValueError: boom"] == collect(["a", "b"], results, TOLERANT)

    def test_position_is_counted_over_all_members(self):
        policy = Policy(tolerate=True, error_format="dict", max_errors=None, timeout=None)
        results = done(a=1, b=2, c=FAILED, d=FAILED)

        _, (_, first), second = collect(["a", ["b", "c"], "d"], results, policy)

        assert [2, 3] == [first["index"], second["index"]]

    @pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
    def test_failed_states(self, state):
        results = {"a": StoredResult("a", state, FAILED)}

        assert ["ValueError: boom"] == collect(["a"], results, TOLERANT)

    def test_member_without_a_result_is_lost(self):
        value, lost = collect(["a", "b"], done(a=1), TOLERANT)

        assert 1 == value
        assert lost.startswith("ChordMemberLost: no result of this header task")

    def test_value_none_is_a_value(self):
        assert [None] == collect(["a"], done(a=None), STRICT)

    def test_empty_header(self):
        assert [] == collect([], {}, STRICT)

    @pytest.mark.parametrize(
        ("policy", "allowance"),
        [
            (STRICT, "none is tolerated"),
            (Policy(True, "string", 1, None), "at most 1 tolerated"),
            (Policy(True, "string", 0.5, None), "at most a share of 0.5 tolerated"),
        ],
    )
    def test_too_many_failures_are_all_named(self, policy, allowance):
        with pytest.raises(ChordError) as caught:
            collect(["a", ["b"], "c"], done(a=FAILED, c=3), policy)

        message = str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)
        assert message.startswith(f"2 of 3 header tasks failed, {allowance}: ")
        assert "a ValueError: boom" in message
        assert "b ChordMemberLost: " in message


@pytest.mark.parametrize("error_format", ["string", "dict"])
def test_long_errors_are_cut_and_stay_in_their_places(error_format):
    long = StoredResult("b", "FAILURE", {**FAILED, "exc_message": ["x" * 10**6]})
    policy = Policy(tolerate=True, error_format=error_format, max_errors=None, timeout=None)

    first, (second, third) = collect(["a", ["b", "c"]], {**done(a=1, c=3), "b": long}, policy)

    text = second["text"] if error_format == "dict" else second
    assert (1, 3) == (first, third)
    assert text.startswith("ValueError: xxx")
    assert text.endswith("xxx... (1,000,000 characters, cut)")
    assert len(json.dumps(second)) < 10_000


def test_error_of_too_many_failures_is_bounded_in_number_and_length():
    policy = Policy(True, "string", 1, None)
    results = {
        str(n): StoredResult(str(n), "FAILURE", {**FAILED, "exc_message": ["x" * 10**4]})
        for n in range(1000)
    }

    with pytest.raises(ChordError) as caught:
        collect(list(results), results, policy)

    assert len(str(caught.value)) < 100_000
    assert str(caught.value).startswith("1000 of 1000 header tasks failed")
    assert str(caught.value).endswith("; and 900 more")


headers = st.recursive(
    st.integers(0, 999).map(str), lambda inner: st.lists(inner, max_size=4), max_leaves=12
).filter(lambda header: isinstance(header, list))


@given(headers, st.sets(st.integers(0, 999)))
def test_collecting_keeps_the_shape_and_drops_nobody(header, failing):
    ids = list(leaf_ids(header))
    results = done(**{id_: FAILED if int(id_) in failing else int(id_) for id_ in ids})

    collected = collect(header, results, TOLERANT)

    def expected(items):
        for item in items:
            if isinstance(item, list):
                yield list(expected(item))
            else:
                yield "ValueError: boom" if int(item) in failing else int(item)

    assert list(expected(header)) == collected


@pytest.fixture
def app():
    app = Celery("completion", broker="memory://", backend="db+sqlite://")
    tasks.register(app)
    app.set_current()
    return app


@pytest.fixture
def t(app):
    return tasks.named(app)


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class TestStrictChords:
    @pytest.fixture
    def finish(self, app, monkeypatch):
        """Return a function that ends a strict chord and returns the error that it fails with."""
        errors = []
        monkeypatch.setattr(ending, "fail", lambda backend, body, exc: errors.append(exc))

        def finish(header, results, **options):
            body = app.tasks["tests.collect"].s()
            ending.Ending(app, "g", body, STRICT, header, results, **options).publish()
            return errors.pop()

        return finish

    def test_error_names_the_member_that_failed(self, finish):
        error = finish(["a", ["b", "c"]], done(c=1, b=FAILED, a=1))

        assert "Dependency b raised ValueError('boom')" == str(error)
        assert isinstance(error.__cause__, ValueError)

    def test_error_names_all_members_that_failed_as_far_as_they_are_readable(self, finish):
        ids = [f"m{number}" for number in range(failures.NAMED + 3)]
        results = done(**dict.fromkeys(ids, FAILED))
        results.add("m2", "FAILURE", ValueError("x" * 1000))
        results.add("m", "SUCCESS", 1)

        first, second, third, *others = str(finish(["m", ids], results)).split("; ")

        assert "Dependency m0 raised ValueError('boom')" == first
        assert "also failed: m1 ValueError: boom" == second
        assert "m2 ValueError: " + "x" * (failures.LINE - 15) + "..." == third
        assert ["m3 ValueError: boom", "and 2 more"] == [others[0], others[-1]]

    def test_error_is_cut_where_its_cause_is_long(self, finish):
        error = finish(["a"], Results([StoredResult("a", "FAILURE", ValueError("x" * 10**6))]))

        assert str(error).startswith("Dependency a raised ValueError('xxx")
        assert str(error).endswith("xxx... (1,000,014 characters, cut)")
        assert len(str(error)) < 5000

    def test_error_without_a_text_fails_the_chord(self, finish):
        wordless = StoredResult("a", "FAILURE", Wordless())

        error = finish(["a"], Results([wordless]))

        assert str(error).startswith("Dependency a raised <Unrepresentable ")

    def test_missing_member_is_lost(self, finish):
        error = finish(["a", "b"], done(a=1))

        assert str(error).startswith("Dependency b raised ChordMemberLost(")

    def test_chord_that_is_settled_names_missing_and_failed_members(self, finish):
        error = finish(["a", ["b"], "c"], done(a=1, c=FAILED), settlement=Settlement("early"))

        assert (
            "Chord g was settled early: no result of 1 of 3 header tasks: b; "
            "failed: c ValueError: boom"
        ) == str(error)
        assert isinstance(error.__cause__, ValueError)

    def test_chord_that_is_settled_when_all_are_there_names_the_one_that_failed(self, finish):
        error = finish(["a", "b"], done(a=1, b=FAILED), settlement=Settlement("early"))

        assert str(error).startswith("Dependency b raised ")


def waiting_for(signature):
    return [leaf["options"]["task_id"] for leaf in signatures.waiting_for(signature)]


def through_json(signature):
    return json.loads(json.dumps(signature))


@pytest.mark.parametrize("transport", [lambda signature: signature, through_json])
class TestWaiting:
    def test_task(self, t, transport):
        body = t.collect.s()
        result = body.freeze()

        assert [result.id] == waiting_for(transport(body))

    def test_group_waits_with_each_task(self, t, transport):
        body = group(t.echo.s(), t.echo.s(), group(t.echo.s(), t.echo.s()))
        result = body.freeze()

        assert sorted(leaves(result)) == sorted(waiting_for(transport(body)))

    def test_chain_waits_with_each_step(self, t, transport):
        body = chain(t.echo.s(), t.echo.s(), t.echo.s())
        result = body.freeze()

        assert [result.parent.parent.id, result.parent.id, result.id] == waiting_for(
            transport(body)
        )

    def test_chord_waits_with_its_body(self, t, transport):
        body = chord([t.echo.s()], t.collect.s())
        result = body.freeze()

        assert [result.id] == waiting_for(transport(body))

    def test_chord_of_chords_waits_with_the_innermost_body(self, t, transport):
        body = chord([t.echo.s()], chord([t.echo.s()], chain(t.echo.s(), t.collect.s())))
        result = body.freeze()

        assert result.id == waiting_for(transport(body))[-1]

    @pytest.mark.parametrize("kind", ["chord", "chain", "group"])
    def test_what_takes_the_place_of_a_member_is_a_member(self, t, transport, kind):
        """`Task.replace` freezes it first, and then tells the whole of its chord."""
        last = chord([t.echo.s()], chain(t.echo.s(), t.collect.s()))
        body = {
            "chord": chord([t.echo.s()], last),
            "chain": chain(t.echo.s(), last),
            "group": group(last, t.echo.s()),
        }[kind]
        body.freeze()
        around = {"chord": through_json(t.collect.s()), "group_id": "g", "group_index": 2}
        body.set(**around)

        leaves = list(signatures.waiting_for(transport(body)))

        members = leaves[-2:] if kind == "group" else leaves[-1:]
        for leaf in members:
            assert around == {key: leaf["options"][key] for key in around}, leaf
        assert "chord" not in leaves[0]["options"]

    def test_what_is_chained_after_it_waits_too(self, t, transport):
        body = t.echo.s()
        body.freeze()
        rest = chain(t.echo.s(), group(t.echo.s(), t.echo.s()))
        steps = list(rest.tasks)
        results = [step.freeze() for step in steps]
        body.options["chain"] = list(reversed(steps))

        expected = [body.options["task_id"], *leaves(results[0]), *leaves(results[1])]
        assert expected == waiting_for(transport(body))

    def test_chained_steps_may_be_left_out(self, t, transport):
        body = t.echo.s()
        body.freeze()
        body.options["chain"] = [t.echo.s()]

        assert 1 == len(list(signatures.waiting_for(transport(body), follow_chain=False)))


def leaves(result):
    if getattr(result, "results", None) is None:
        return [result.id]
    return [leaf for member in result.results for leaf in leaves(member)]


def test_header_is_nested_as_the_results_are(app):
    nested = app.GroupResult("g", [app.AsyncResult("b"), app.AsyncResult("c")])

    header = header_of([app.AsyncResult("a"), nested])

    assert ["a", ["b", "c"]] == header
    assert ["a", "b", "c"] == list(leaf_ids(header))
