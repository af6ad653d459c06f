"""Many results at once: how they are kept, and how they are decoded."""

from __future__ import annotations

from collections import deque

import pytest
from celery import Celery
from kombu.utils.encoding import ensure_bytes

from chordguard.upstream.results import CHUNK, Results, StoredResult, decoded

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


def backend(serializer="json", **options):
    app = Celery(
        backend="redis://localhost:1", set_as_current=False, result_serializer=serializer, **options
    )
    app.conf.result_accept_content = [serializer]
    return app.backend


def payloads_decoded(monkeypatch):
    """Return a list to which what is decoded from now on is added."""
    from celery.backends import base

    seen = []
    loads = base.loads

    def count(payload, *args, **kwargs):
        seen.append(payload)
        return loads(payload, *args, **kwargs)

    monkeypatch.setattr(base, "loads", count)
    return seen


class TestDecoding:
    @pytest.mark.parametrize("serializer", ["json", "pickle"])
    def test_each_is_decoded_in_its_order(self, serializer):
        store = backend(serializer)
        parts = [[1, f"id-{n}", "SUCCESS", {"n": n, "of": ["]", "[", "],["]}] for n in range(1200)]
        payloads = deque(ensure_bytes(store.encode(part)) for part in parts)

        assert parts == list(decoded(store, payloads))

    def test_json_is_decoded_together(self, monkeypatch):
        store = backend()
        payloads = deque(store.encode([1, str(n), "SUCCESS", n]).encode() for n in range(3 * CHUNK))
        seen = payloads_decoded(monkeypatch)

        assert 3 * CHUNK == len(list(decoded(store, payloads)))
        assert 3 == len(seen)
        assert not payloads

    @pytest.mark.parametrize(
        "damaged",
        [
            [b"[1, 2"],
            [b"[]x[]"],
            [b""],
            [b"[1]\xff"],
            [b"[1],[2]"],
            [b"[1,[2]", b"[3],4]"],
            [b"12"],
        ],
    )
    def test_damaged_one_is_left_out_and_no_other(self, damaged):
        store = backend()
        whole = store.encode([1, "a", "SUCCESS", 1]).encode()

        found = list(decoded(store, deque([whole, *damaged, whole])))

        assert [[1, "a", "SUCCESS", 1]] * 2 == [part for part in found if isinstance(part, list)]

    def test_objects_are_decoded_as_each_alone(self):
        from datetime import datetime, timezone

        store = backend()
        now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        payloads = [store.encode([1, "a", "SUCCESS", now]).encode()] * 3

        assert [store.decode(each) for each in payloads] == list(decoded(store, deque(payloads)))

    def test_backend_that_decodes_itself_decodes_each(self):
        store = backend()

        class Sealed(type(store)):
            def decode(self, payload):
                return super().decode(payload[1:-1].swapcase())

        sealed = Sealed(app=store.app, url="redis://localhost:1")

        assert [{"A": 1}] * 2 == list(decoded(sealed, deque([b'[{"a": 1}]'] * 2)))
