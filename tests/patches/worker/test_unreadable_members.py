from __future__ import annotations

import zlib

import pytest
from celery import chain, chord, group
from kombu import compression

from chordguard import tolerant
from tests.harness import is_ready, wait_until

#: Known to the producer alone.
COMPRESSION = "application/x-tests-zlib"
compression.register(zlib.compress, zlib.decompress, COMPRESSION)

REFUSED = (
    "ContentDisallowed: Refusing to deserialize untrusted content of type pickle "
    "(application/x-python-serialize)"
)
COMPRESSED = f"KeyError: '{COMPRESSION}'"
#: What follows is that of a library.
INVALID = "InvalidTaskError: invalid ETA value 'soon'"

polled = pytest.mark.cluster(settings={"chord_ledger": False})

every_kind = pytest.mark.parametrize("backend_kind", ["redis", "sqlite"])


def refused(task):
    """A worker accepts JSON alone."""
    return task.set(serializer="pickle")


def invalid(task):
    """Its body can be read."""
    return task.set(headers={"eta": "soon"})


def compressed(t):
    return t.echo.s(1).set(compression=COMPRESSION)


def refused_member(t):
    return refused(t.echo.s(1))


def refused_at_the_end_of_a_chain(t):
    return chain(t.echo.s(1), refused(t.echo.s()))


def refused_in_a_group(t):
    return group(t.echo.s(1), group(refused(t.echo.s(1))))


def refused_in_a_chord(t):
    return chord([t.echo.s(1), refused(t.echo.s(2))], t.collect.s())


def refused_body(t):
    return chord([t.echo.s(1)], refused(t.collect.s()))


def invalid_member(t):
    return invalid(t.echo.s(1))


def invalid_in_a_chain(t):
    return chain(t.echo.s(1), invalid(t.echo.s()), t.echo.s())


#: A member, and what the body gets for it.
MEMBERS = [
    (refused_member, [REFUSED]),
    (refused_at_the_end_of_a_chain, [REFUSED]),
    (refused_in_a_group, [1, REFUSED]),
    (refused_in_a_chord, [[1, REFUSED]]),
    (refused_body, [REFUSED]),
    (compressed, [COMPRESSED]),
    (invalid_member, [INVALID]),
    (invalid_in_a_chain, [INVALID]),
]


def canvas(t, member):
    return tolerant(chord([member(t), t.echo.s(2)], t.collect.s()))


def without_cause(value):
    """Return what a body got, without what a library says of an `eta`."""
    if isinstance(value, list):
        return [without_cause(item) for item in value]
    return INVALID if str(value).startswith(INVALID) else value


@every_kind
def test_chord_of_an_unreadable_member_hangs(without_fix):
    t = without_fix.tasks
    results = [canvas(t, member).apply_async() for member, _ in MEMBERS]
    strict = chord([refused_member(t), t.echo.s(2)], t.collect.s()).apply_async()

    assert without_fix.outcome(results[0], quiet=0.7).hung
    assert not any(is_ready(result) for result in [*results, strict])
    assert "PENDING" == results[0].parent.results[0].state


@pytest.mark.cluster(settings={"chord_propagate_errors": False})
def test_unreadable_member_counts_as_failed(with_fix):
    t = with_fix.tasks
    results = [canvas(t, member).apply_async() for member, _ in MEMBERS]

    values = [without_cause(with_fix.run(result)) for result in results]

    assert [[*got, 2] for _, got in MEMBERS] == values


@every_kind
def test_unreadable_member_fails_a_strict_chord(with_fix):
    t = with_fix.tasks
    results = [
        chord([member(t), t.echo.s(2)], t.collect.s()).apply_async()
        for member in (refused_member, refused_in_a_chord, compressed, invalid_member)
    ]

    outcomes = [with_fix.outcome(result) for result in results]

    assert ["ChordError"] * 4 == [type(outcome.value).__name__ for outcome in outcomes]
    for outcome, error in zip(outcomes, (REFUSED, REFUSED, COMPRESSED, INVALID), strict=True):
        assert error.partition(": ")[2].strip("'") in str(outcome.value)


@every_kind
def test_member_of_a_last_group_counts_as_failed(with_fix):
    t = with_fix.tasks
    member = chain(t.echo.s(1), group(refused(t.echo.s()), t.echo.s()))

    assert [[REFUSED, 1], 2] == with_fix.run(canvas(t, lambda t: member))


@every_kind
def test_member_of_a_generator_counts_as_failed(with_fix):
    t = with_fix.tasks
    header = (refused(t.echo.s(i)) if i == 1 else t.echo.s(i) for i in range(3))

    assert [0, REFUSED, 2] == with_fix.run(tolerant(chord(header, t.collect.s())))


@polled
@every_kind
def test_member_whose_body_can_be_read_needs_no_ledger(with_fix):
    t = with_fix.tasks
    results = [canvas(t, member).apply_async() for member in (invalid_member, invalid_in_a_chain)]

    assert [[INVALID, 2]] * 2 == [without_cause(with_fix.run(result)) for result in results]


@every_kind
def test_task_that_no_chord_waits_for_is_left_to_celery(with_fix):
    t = with_fix.tasks
    with_fix.worker.begin_log()
    results = [
        refused_member(t).apply_async(),
        invalid_member(t).apply_async(),
        compressed(t).apply_async(),
        group(refused_member(t), invalid_member(t)).apply_async(),
        chain(refused_member(t), t.echo.s()).apply_async(),
        chain(invalid_member(t), t.echo.s()).apply_async(),
    ]

    def dropped():
        log = with_fix.worker.log_text()
        return log.count("Received invalid task message") + log.count("Can't decode message body")

    wait_until(lambda: dropped() == 7, what="messages that are dropped")
    assert 1 == with_fix.run(t.echo.s(1))
    assert not any(is_ready(result) for result in results)
    assert "its chord may end late" not in with_fix.worker.log_text()


@every_kind
def test_copy_of_a_message_that_was_read_is_no_failure(with_fix, gate):
    t = with_fix.tasks
    result = chord([t.echo.s(1), t.wait_for_file.s(gate.path, 2)], t.collect.s()).apply_async()
    first = result.parent.results[0]
    wait_until(lambda: first.state == "SUCCESS", what="the first member")

    with_fix.worker.begin_log()
    refused(t.echo.s(1)).apply_async(task_id=first.id, group_id=result.parent.id, group_index=0)
    wait_until(lambda: "Refusing" in with_fix.worker.log_text(), what="the copy, refused")
    gate.open()

    assert [1, 2] == with_fix.run(result)
    assert "SUCCESS" == first.state


@every_kind
def test_error_of_ours_does_not_stop_the_worker(with_fix):
    t = with_fix.tasks
    with_fix.worker.begin_log()

    refused(t.echo.s(1)).apply_async(headers={"group": {"no": "id"}})

    assert 2 == with_fix.run(t.echo.s(2))
    wait_until(lambda: "its chord may end late" in with_fix.worker.log_text(), what="the log")


@pytest.mark.cluster(settings={"task_protocol": 1})
@pytest.mark.parametrize("backend_kind", ["redis"])
def test_message_of_the_old_protocol_tells_nothing(with_fix):
    t = with_fix.tasks
    result = canvas(t, refused_member).apply_async()

    assert with_fix.outcome(result, quiet=0.7).hung
    assert "PENDING" == result.parent.results[0].state
    assert 1 == with_fix.run(t.echo.s(1))


def test_other_result_backends_are_left_alone(clusters, tmp_path):
    cluster = clusters("redis", settings={"result_backend": f"file://{tmp_path}"})
    t = cluster.tasks
    member = chord([refused_member(t), t.echo.s(2)], t.collect.s()).apply_async().parent.results[0]

    assert 1 == cluster.run(t.echo.s(1))
    assert "PENDING" == member.state
    assert "its chord may end late" not in cluster.worker.log_text()
