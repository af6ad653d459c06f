from __future__ import annotations

import json
from datetime import timedelta

import pytest
from celery import Celery, chain, chord, group
from hypothesis import given
from hypothesis import strategies as st

from chordguard import SettingError, strict, tolerant
from chordguard.failures import MARKER
from chordguard.policy import HEADER, Policy, choice_of, tolerates
from tests import tasks

RECORD = {
    MARKER: 1,
    "task_id": "1",
    "index": 0,
    "state": "FAILURE",
    "exc_type": "ValueError",
    "exc_module": "builtins",
    "exc_message": "boom",
    "text": "ValueError: boom",
}


BODIES = pytest.mark.parametrize(
    "make",
    [
        lambda t: t.collect.s(),
        lambda t: chain(t.collect.s(), t.echo.s()),
        lambda t: group(t.collect.s(), t.collect.s()),
        lambda t: group(chain(t.collect.s(), t.echo.s()), t.collect.s()),
        lambda t: chain(group(t.collect.s(), t.collect.s()), group(t.collect.s(), t.collect.s())),
        lambda t: chord([t.collect.s()], t.collect.s()),
    ],
    ids=["task", "chain", "group", "group of a chain", "groups", "chord"],
)


@pytest.fixture
def app():
    app = Celery("policy", broker="memory://", backend="db+sqlite://", set_as_current=False)
    tasks.register(app)
    return app


@pytest.fixture
def t(app):
    return tasks.named(app)


def policy(**changes):
    values = {"tolerate": True, "error_format": "string", "max_errors": None, "timeout": None}
    return Policy(**{**values, **changes})


def through_json(signature):
    return json.loads(json.dumps(signature))


class TestChoice:
    def test_configuration_decides_where_nothing_is_chosen(self, app, t):
        assert not tolerates(app, t.collect.s())
        app.conf.chord_propagate_errors = False
        assert tolerates(app, t.collect.s())
        assert tolerates(app, None)

    def test_choice_is_stronger_than_the_configuration(self, app, t):
        assert tolerates(app, tolerant(t.collect.s()))
        app.conf.chord_propagate_errors = False
        assert not tolerates(app, strict(t.collect.s()))

    def test_last_choice_counts(self, app, t):
        assert not tolerates(app, strict(tolerant(t.collect.s())))
        assert tolerates(app, tolerant(strict(t.collect.s())))

    def test_choice_of_a_chord_is_that_of_its_body(self, app, t):
        marked = tolerant(chord([t.echo.s(1)], t.collect.s()))

        assert tolerates(app, marked.body)

    @BODIES
    def test_choice_stays_with_the_body_whatever_is_chained_to_it(self, app, t, make):
        """`chord | task` makes a chain, or a chord, of the body and the task."""
        canvas = strict(chord([t.echo.s(1)], make(t))) | t.echo.s() | t.echo.s()
        app.conf.chord_propagate_errors = False

        assert "chord" == canvas["subtask_type"]
        assert not tolerates(app, canvas.body)
        assert not tolerates(app, through_json(canvas)["kwargs"]["body"])

    def test_choice_is_not_that_of_a_chord_in_the_body(self, app, t):
        inner = chord([chord([t.collect.s()], t.collect.s())], t.collect.s())
        canvas = tolerant(chord([t.echo.s(1)], group(inner, t.collect.s()))) | t.echo.s()

        assert tolerates(app, canvas.body)
        assert not tolerates(app, inner.body)
        assert not tolerates(app, canvas.body.tasks[0].body)

    @BODIES
    def test_body_may_be_any_canvas(self, app, t, make):
        marked = tolerant(chord([t.echo.s(1)], make(t)), max_errors=2)

        as_data = through_json(marked)

        assert 2 == Policy.of(app, marked.body).max_errors
        assert 2 == Policy.of(app, as_data["kwargs"]["body"]).max_errors

    def test_signature_as_data_may_be_marked(self, app, t):
        data = app.signature(through_json(chord([t.echo.s(1)], t.collect.s())))

        assert tolerates(app, tolerant(data).body)

    def test_original_is_left_as_it_was(self, app, t):
        original = chord([t.echo.s(1)], t.collect.s().set(headers={"trace": 1}))

        marked = tolerant(original)

        assert not tolerates(app, original.body)
        assert {"trace": 1} == original.body.options["headers"]
        assert 1 == marked.body.options["headers"]["trace"]

    @BODIES
    def test_original_body_is_left_as_it_was(self, app, t, make):
        original = chord([t.echo.s(1)], make(t))

        tolerant(original)

        assert not tolerates(app, original.body)

    @pytest.mark.parametrize("choose", [tolerant, strict])
    @pytest.mark.parametrize("wrong", [None, "task", 1, ["task"], {}])
    def test_what_is_no_signature_is_refused(self, choose, wrong):
        with pytest.raises(TypeError, match="expected a chord"):
            choose(wrong)

    def test_chord_without_a_body_is_refused(self, t):
        with pytest.raises(TypeError, match="body"):
            tolerant(chord([t.echo.s(1)]))


class TestValues:
    def test_values_come_from_the_configuration(self, app, t):
        app.conf.update(
            chord_propagate_errors=False,
            chord_error_format="dict",
            chord_max_errors=0.5,
            chord_timeout=timedelta(minutes=1),
        )

        assert policy(error_format="dict", max_errors=0.5, timeout=60) == Policy.of(
            app, t.collect.s()
        )

    def test_values_chosen_per_chord_are_stronger(self, app, t):
        app.conf.update(chord_error_format="dict", chord_max_errors=0.5, chord_timeout=60)
        body = tolerant(
            t.collect.s(), max_errors=None, error_format="string", timeout=timedelta(seconds=5)
        )

        assert policy(timeout=5) == Policy.of(app, through_json(body))
        assert Policy.of(app, tolerant(body, timeout=None)).timeout is None

    def test_results_that_never_expire_mean_no_timeout(self, app, t):
        app.conf.result_expires = 0

        assert Policy.of(app, t.collect.s()).timeout is None

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("max_errors", -1),
            ("max_errors", 1.5),
            ("max_errors", True),
            ("error_format", "text"),
            ("error_format", None),
            ("timeout", 0),
            ("timeout", "soon"),
            ("timeout", float("nan")),
            ("timeout", float("inf")),
            ("timeout", 1e300),
            ("max_errors", float("nan")),
            ("max_errors", float("inf")),
            ("max_errors", 10**400),
        ],
    )
    def test_value_that_makes_no_sense_is_refused(self, t, key, value):
        with pytest.raises(SettingError, match=rf"{key} = .*expected"):
            tolerant(t.collect.s(), **{key: value})

    def test_strict_chord_refuses_a_timeout_that_makes_no_sense(self, t):
        with pytest.raises(SettingError, match="chord_timeout = -1"):
            strict(t.collect.s(), timeout=-1)

    def test_message_may_not_name_code(self, app, t):
        with pytest.raises(SettingError, match="may not name code"):
            tolerant(t.collect.s(), error_format="json.dumps")

        body = t.collect.s().set(headers={HEADER: {"tolerate": True, "error_format": "os.getcwd"}})
        assert "string" == Policy.of(app, body).error_format


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
keys = st.sampled_from(["tolerate", "max_errors", "error_format", "timeout", "unknown"])


@given(choice=garbage | st.dictionaries(keys, garbage))
def test_garbage_in_the_header_never_breaks_a_chord(choice):
    app = Celery("garbage", broker="memory://", set_as_current=False)
    body = {"task": "body", "options": {"headers": {HEADER: choice}}}

    found = Policy.of(app, body)

    assert isinstance(found.tolerate, bool)
    assert found.error_format in ("string", "dict")
    assert isinstance(found.allows(1, 2), bool)
    assert found.timeout is None or found.timeout > 0


@pytest.mark.parametrize(
    "body", [None, {}, {"options": None}, {"options": {"headers": 1}}, "x", []]
)
def test_body_of_any_shape_has_no_choice(body):
    assert choice_of(body) is None


class TestAllowance:
    @pytest.mark.parametrize(
        ("max_errors", "failed", "size", "allowed"),
        [
            (None, 10, 10, True),
            (0, 0, 3, True),
            (0, 1, 3, False),
            (2, 2, 3, True),
            (2, 3, 3, False),
            (0.0, 1, 100, False),
            (0.5, 1, 2, True),
            (0.5, 2, 3, False),
            (1.0, 3, 3, True),
        ],
    )
    def test_count_and_share(self, max_errors, failed, size, allowed):
        assert allowed == policy(max_errors=max_errors).allows(failed, size)

    def test_share_is_exact_for_round_numbers(self):
        # 0.29 * 100 is 28.999999999999996
        assert policy(max_errors=0.29).allows(29, 100)

    def test_strict_policy_allows_no_failure(self):
        assert policy(tolerate=False).allows(0, 3)
        assert not policy(tolerate=False).allows(1, 3)


class TestHandingOver:
    def test_text_and_record(self):
        assert "ValueError: boom" == policy().hand_over(RECORD, None)
        assert RECORD == policy(error_format="dict").hand_over(RECORD, None)

    def test_exception_that_was_stored_is_handed_over(self):
        stored = ValueError("boom")

        assert stored is policy(error_format="exception").hand_over(RECORD, stored)

    def test_exception_is_made_from_the_record(self):
        error = policy(error_format="exception").hand_over(RECORD, {"exc_type": "ValueError"})

        assert isinstance(error, ValueError)
        assert "boom" == str(error)

    def test_function_gets_a_record_of_its_own(self):
        handed_over = policy(error_format="builtins.dict").hand_over(RECORD, None)

        assert RECORD == handed_over
        assert RECORD is not handed_over

    @pytest.mark.parametrize("path", ["builtins.int", "no_such_module.function"])
    def test_function_that_fails_costs_the_format_not_the_chord(self, path, caplog):
        assert "ValueError: boom" == policy(error_format=path).hand_over(RECORD, None)
        assert path in caplog.text
