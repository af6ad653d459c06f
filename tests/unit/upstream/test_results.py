"""Many results at once."""

from __future__ import annotations

import pytest

from chordguard.upstream.results import Results, StoredResult

FAILED = {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}


class TestResults:
    def test_is_a_mapping_in_the_order_in_which_they_came(self):
        results = Results(
            [StoredResult("b", "SUCCESS", None), StoredResult("a", "FAILURE", FAILED)]
        )

        assert ["b", "a"] == list(results)
        assert StoredResult("b", "SUCCESS", None) == results["b"]
        assert StoredResult("a", "FAILURE", FAILED) == results.get("a")
        assert results.get("c") is None
        assert "c" not in results

    def test_later_one_takes_the_place_of_an_earlier_one(self):
        results = Results([StoredResult("a", "FAILURE", FAILED)])
        results.add("a", "SUCCESS", 1)

        assert [1] == results.values_of(["a"])
        results.add("a", "REVOKED", None)
        assert results.values_of(["a"]) is None
        assert StoredResult("a", "REVOKED", None) == results["a"]

    def test_value_that_is_a_result_itself_is_a_value(self):
        value = StoredResult("x", "FAILURE", FAILED)
        results = Results([StoredResult("a", "SUCCESS", value)])

        assert [value] == results.values_of(["a"])
        assert not results["a"].failed

    def test_values_are_nested_as_the_ids(self):
        results = Results(StoredResult(id_, "SUCCESS", id_.upper()) for id_ in "cab")

        assert ["A", ["B", ["C"], []], "A"] == results.values_of(["a", ["b", ["c"], []], "a"])
        assert results.have_succeeded("abc")

    @pytest.mark.parametrize("ids", [["a", "x"], ["a", ["b", ["x"]]]])
    def test_there_are_none_where_one_is_missing(self, ids):
        results = Results(StoredResult(id_, "SUCCESS", id_) for id_ in "ab")

        assert results.values_of(ids) is None
        assert not results.have_succeeded(["a", "x"])

    @pytest.mark.parametrize("state", ["FAILURE", "REVOKED", "STARTED"])
    def test_there_are_none_where_one_did_not_succeed(self, state):
        results = Results([StoredResult("a", "SUCCESS", 1), StoredResult("b", state, None)])

        assert results.values_of(["a"]) is None
        assert not results.have_succeeded(["a"])
