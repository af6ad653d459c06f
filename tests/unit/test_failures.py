from __future__ import annotations

import builtins
import json
import sys

import pytest
from celery.utils.serialization import UnpickleableExceptionWrapper
from hypothesis import given
from hypothesis import strategies as st

from chordguard import (
    ChordMemberError,
    ChordMembersFailed,
    is_chord_error,
    raise_if_errors,
    split_results,
    to_exception,
)
from chordguard.failures import LONGEST, MARKER, NAMED, cut, describe, record_of
from chordguard.upstream.results import StoredResult
from tests.tasks import CustomError, RaisingStrError


def stored(value, state="FAILURE"):
    return StoredResult("id-1", state, value)


def as_json(exc_type, message, module="builtins"):
    return {"exc_type": exc_type, "exc_message": message, "exc_module": module}


def record(text="ValueError: boom", **changes):
    exc_type, _, message = text.partition(": ")
    found = record_of(stored(as_json(exc_type, [message])), 0)
    return {**found, **changes}


class TestRecords:
    def test_record_tells_what_was_stored(self):
        assert {
            MARKER: 1,
            "task_id": "id-1",
            "index": 3,
            "state": "REVOKED",
            "exc_type": "TaskRevokedError",
            "exc_module": "celery.exceptions",
            "exc_message": "revoked",
            "text": "TaskRevokedError: revoked",
        } == record_of(
            stored(as_json("TaskRevokedError", ["revoked"], "celery.exceptions"), "REVOKED"), 3
        )

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (as_json("ValueError", ["boom"]), "ValueError: boom"),
            (as_json("ValueError", "boom"), "ValueError: boom"),
            (as_json("ValueError", []), "ValueError: "),
            (as_json("ValueError", ["a", 1]), "ValueError: ('a', 1)"),
            (as_json("KeyError", ["missing"]), "KeyError: 'missing'"),
            (as_json("OSError", [2, "No such file"]), "OSError: [Errno 2] No such file"),
            (as_json("UnicodeDecodeError", ["ascii"]), "UnicodeDecodeError: ascii"),
            (as_json("Own", ["boom"], "elsewhere"), "Own: boom"),
            (as_json("Own", ["1", "2"], "elsewhere"), "Own: ('1', '2')"),
            (as_json("Outer.Inner", ["boom"], "elsewhere"), "Inner: boom"),
            (as_json("print", ["boom"]), "print: boom"),
            (as_json("Own", ["boom"], None), "Own: boom"),
            (ValueError("boom"), "ValueError: boom"),
            (KeyError("missing"), "KeyError: 'missing'"),
            (CustomError("boom"), "CustomError: boom"),
            ("text", "str: text"),
            (None, "NoneType: None"),
        ],
    )
    def test_text_is_worded_as_the_exception_words_itself(self, value, text):
        found = record_of(stored(value), 0)

        assert text == found["text"]
        assert found == json.loads(json.dumps(found))

    def test_exception_whose_text_cannot_be_had_has_a_stand_in(self):
        text = record_of(stored(RaisingStrError()), 0)["text"]

        assert "RaisingStrError: <no text: str() raised RuntimeError>" == text

    def test_stand_in_of_an_exception_that_cannot_be_pickled_is_seen_through(self):
        wrapper = UnpickleableExceptionWrapper("own.module", "Own", ["boom"], "Own('boom')")
        as_data = as_json(
            "UnpickleableExceptionWrapper",
            ["own.module", "Own", ["boom"], "Own('boom')"],
            "celery.utils.serialization",
        )

        for value in (wrapper, as_data):
            found = record_of(stored(value), 0)
            assert ("Own", "own.module") == (found["exc_type"], found["exc_module"])
            assert "Own: boom" == found["text"]

    def test_description_names_the_task(self):
        assert "id-1 ValueError: boom" == describe(record())


class TestRecognition:
    @pytest.mark.parametrize("value", [record(), ValueError(), KeyboardInterrupt()])
    def test_records_and_exceptions_are_errors(self, value):
        assert is_chord_error(value)

    @pytest.mark.parametrize("value", [None, 1, "ValueError: x", {}, {"exc_type": "x"}, [MARKER]])
    def test_nothing_else_is(self, value):
        assert not is_chord_error(value)


class TestSplitting:
    def test_values_and_errors_keep_their_order(self):
        one, two = record("ValueError: one"), record("ValueError: two")

        assert ([1, 3], [one, two]) == split_results([1, one, 3, two])

    def test_nested_lists_keep_their_place_without_their_errors(self):
        one, two = record("ValueError: one"), record("ValueError: two")

        values, errors = split_results([1, [2, one], [[two], 4], [5, 6]])

        assert [1, [2], [[], 4], [5, 6]] == values
        assert [one, two] == errors

    @given(
        st.recursive(
            st.integers() | st.just(record()), lambda inner: st.lists(inner, max_size=4)
        ).filter(lambda value: isinstance(value, list))
    )
    def test_nothing_is_lost(self, results):
        values, errors = split_results(results)

        flat = list(flattened(results))
        assert [item for item in flat if not is_chord_error(item)] == list(flattened(values))
        assert [item for item in flat if is_chord_error(item)] == errors


def flattened(items):
    for item in items:
        if isinstance(item, list):
            yield from flattened(item)
        else:
            yield item


class TestRaising:
    def test_results_without_errors_pass(self):
        assert raise_if_errors([1, [2, 3], "ValueError: boom"]) is None

    def test_error_names_every_failure(self):
        errors = [record("ValueError: one"), CustomError("two"), RaisingStrError()]

        with pytest.raises(ChordMembersFailed) as caught:
            raise_if_errors([1, errors[0], [errors[1], 2], errors[2]])

        assert str(caught.value).startswith("3 header tasks failed: id-1 ValueError: one; ")
        assert "CustomError: two" in str(caught.value)
        assert errors == caught.value.errors
        assert isinstance(caught.value.__cause__, ValueError)

    def test_one_failure_is_one_task(self):
        with pytest.raises(ChordMembersFailed, match=r"^1 header task failed"):
            raise_if_errors([record()])


class TestExceptions:
    @pytest.mark.parametrize("original", [ValueError("boom"), CustomError("boom"), ValueError()])
    def test_class_that_is_known_here_is_used(self, original):
        error = to_exception(record_of(stored(original), 0))

        assert type(original) is type(error)
        assert str(original) == str(error)

    def test_exception_stays_itself(self):
        error = ValueError()

        assert error is to_exception(error)

    @pytest.mark.parametrize(
        ("exc_type", "module"),
        [
            ("Unknown", "no.such.module"),
            ("Unknown", "builtins"),
            ("print", "builtins"),
            ("object", "builtins"),
            ("UnicodeDecodeError", "builtins"),
            ("path.join", "os"),
        ],
    )
    def test_class_that_is_not_known_or_none_gives_the_record(self, exc_type, module):
        data = record_of(stored(as_json(exc_type, ["boom"], module)), 0)

        error = to_exception(data)

        assert isinstance(error, ChordMemberError)
        assert data["text"] == str(error)
        assert data is error.record

    def test_nothing_is_ever_imported(self, monkeypatch):
        sys.modules.pop("antigravity", None)
        monkeypatch.setattr(builtins, "__import__", None)

        error = to_exception(record(exc_type="Fly", exc_module="antigravity"))

        assert isinstance(error, ChordMemberError)
        assert "antigravity" not in sys.modules

    @pytest.mark.parametrize("value", [None, 1, "text", {}])
    def test_what_is_no_error_is_refused(self, value):
        with pytest.raises(TypeError, match="chord error"):
            to_exception(value)


class TestLongTexts:
    def test_text_is_cut_and_says_so(self):
        assert "x" * LONGEST == cut("x" * LONGEST)
        assert "x" * LONGEST + "... (1,048,576 characters, cut)" == cut("x" * 2**20)

    @pytest.mark.parametrize(
        "value", [as_json("ValueError", ["x" * 10**6]), ValueError("x" * 10**6)]
    )
    def test_record_is_bounded(self, value):
        found = record_of(stored(value), 0)

        assert found["text"] == f"ValueError: {found['exc_message']}"
        assert found["exc_message"].endswith("xxx... (1,000,000 characters, cut)")
        assert len(describe(found)) < 5000

    @pytest.mark.parametrize("make", [record, ValueError])
    def test_raised_error_is_bounded_in_number_and_length(self, make):
        errors = [make("ValueError: " + "x" * 10**4) for _ in range(NAMED + 5)]

        with pytest.raises(ChordMembersFailed) as caught:
            raise_if_errors(errors)

        assert str(caught.value).startswith("105 header tasks failed: ")
        assert str(caught.value).endswith("; and 5 more")
        assert len(str(caught.value)) < 50_000
        assert errors == caught.value.errors
