"""Stored results are read from whatever backend, together where it can."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.backends.base import BaseBackend, KeyValueStoreBackend
from celery.result import AsyncResult

from chordguard.errors import ResultUnreadable
from chordguard.lifecycle.polling import PORTION, PolledHeader
from chordguard.upstream.results import (
    KEPT_FOR_CHORD,
    forget_results,
    read_results,
    ready_states,
)


class InMemory(KeyValueStoreBackend):
    """Reads one key after another, as S3 does, and counts the reads."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept, self.reads = {}, 0

    def get(self, key):
        self.reads += 1
        return self.kept.get(key)

    def set(self, key, value):
        self.kept[key] = value

    def delete(self, key):
        self.kept.pop(key, None)


class AsList(InMemory):
    """Reads many keys at once, and gives them as an iterator."""

    def mget(self, keys):
        self.reads += 1
        yield from map(self.kept.get, keys)


class AsDict(InMemory):
    """Reads many keys at once, and gives those that are there by key."""

    def mget(self, keys):
        self.reads += 1
        return {key: self.kept[key] for key in keys if key in self.kept}


class NoKeys(BaseBackend):
    """Keeps documents, as MongoDB does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = {}

    def _store_result(self, task_id, result, state, traceback=None, request=None, **kwargs):
        meta = self._get_result_meta(result, state, traceback, request)
        self.kept[task_id] = self.encode(meta)
        return result

    def _get_task_meta_for(self, task_id):
        if task_id not in self.kept:
            return {"status": "PENDING", "result": None}
        return self.decode_result(self.kept[task_id])

    def _forget(self, task_id):
        del self.kept[task_id]


@pytest.fixture(params=[InMemory, AsList, AsDict, NoKeys])
def backend(request):
    app = Celery("reading", set_as_current=False)
    app.conf.result_serializer = "json"
    backend = request.param(app=app)
    backend.store_result("a", {"x": [1]}, "SUCCESS")
    backend.store_result("b", ValueError("boom"), "FAILURE")
    backend.store_result("c", None, "STARTED")
    return backend


def test_results_are_read_with_their_states(backend):
    results = read_results(backend, ["b", "a", "missing", "c"])

    assert [("b", "FAILURE"), ("a", "SUCCESS"), ("c", "STARTED")] == [
        (result.task_id, result.state) for result in results.values()
    ]
    assert {"x": [1]} == results["a"].value
    assert {"a": "SUCCESS", "b": "FAILURE"} == ready_states(backend, ["a", "b", "c", "d"])


def test_many_are_read_together_where_the_backend_can(backend):
    if isinstance(backend, (AsList, AsDict)):
        backend.reads = 0
        read_results(backend, ["a", "b", "c", *map(str, range(50))])
        assert 1 == backend.reads


def test_what_cannot_be_decoded_is_a_failure(backend):
    key = backend.get_key_for_task("a") if hasattr(backend, "get_key_for_task") else "a"
    backend.kept[key] = b"{broken"

    results = read_results(backend, ["a", "b"])

    assert isinstance(results["a"].value, ResultUnreadable)
    assert ["FAILURE", "FAILURE"] == [result.state for result in results.values()]


def test_what_was_half_written_is_read_again(monkeypatch):
    backend = InMemory(app=Celery("reading", set_as_current=False))
    backend.store_result("a", 1, "SUCCESS")
    whole = backend.kept[backend.get_key_for_task("a")]
    given = iter([whole[:-3], whole])
    monkeypatch.setattr(backend, "get", lambda key: next(given))

    assert 1 == read_results(backend, ["a"])["a"].value


def test_what_is_stored_for_a_chord_alone_is_known(backend):
    backend.store_result("d", 1, "SUCCESS", traceback=KEPT_FOR_CHORD)

    assert ["d"] == read_results(backend, ["a", "b", "d"]).spare
    forget_results(backend, ["d"])
    assert {} == ready_states(backend, ["d"])


class TestPolledHeader:
    """A poll reads up to the first portion with a member that is not ready."""

    SIZE = 5 * PORTION

    @pytest.fixture
    def backend(self):
        return InMemory(app=Celery("reading", set_as_current=False))

    def header(self, backend, known=0):
        results = [AsyncResult(str(i), backend=backend) for i in range(self.SIZE)]
        header = PolledHeader("g", results, app=backend.app)
        header.known = known
        return header

    def store(self, backend, ids):
        for id_ in ids:
            backend.kept[backend.get_key_for_task(str(id_))] = backend.encode(
                {"status": "SUCCESS", "result": None}
            )

    def test_stops_where_one_is_not_ready(self, backend, monkeypatch):
        monkeypatch.setattr(PolledHeader, "backend", backend)
        self.store(backend, (i for i in range(self.SIZE) if i != PORTION + 3))
        header = self.header(backend)

        assert not header.ready()
        assert 2 * PORTION == backend.reads
        assert PORTION + 3 == header.known
        assert self.SIZE - 1 == header.ready_count

    def test_goes_on_where_the_last_one_stopped(self, backend, monkeypatch):
        monkeypatch.setattr(PolledHeader, "backend", backend)
        self.store(backend, range(self.SIZE))

        assert self.header(backend, known=self.SIZE - 2).ready()
        assert 2 == backend.reads
