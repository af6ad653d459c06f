"""Many results at once: how they are decoded."""

from __future__ import annotations

from collections import deque

import pytest
from celery import Celery
from kombu.utils.encoding import ensure_bytes

from chordguard.upstream.decoding import CHUNK, decoded


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
