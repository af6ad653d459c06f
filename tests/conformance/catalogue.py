"""The catalogue of defects as data: a canvas, and what must become of it.

Each scenario is run on patched workers, on every backend that it concerns. What Celery alone does
with it is on record, see `tests.conformance.recorded`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group, signature
from celery.canvas import maybe_signature

from chordguard import tolerant
from tests.harness import WITH_OWN_LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable

#: What can become of a canvas.
RIGHT, FAILS, HANGS, WRONG, RAISES = "right", "fails", "hangs", "wrong", "raises"

REDIS, SQLITE, POSTGRESQL, MARIADB = "redis", "sqlite", "postgresql", "mysql"
SQL = (SQLITE, POSTGRESQL, MARIADB)
ALL = (REDIS, *SQL)

BOOM = "ValueError: boom"

#: The name of a task that no worker has.
NOT_REGISTERED = "tests.not_registered"

#: What a worker says that accepts JSON alone.
REFUSED = (
    "ContentDisallowed: Refusing to deserialize untrusted content of type pickle "
    "(application/x-python-serialize)"
)


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        defect: The id of the defect in the README's table.
        name: What the canvas is, in a few words.
        canvas: Makes it, given the tasks of the tests by name.
        expected: What a patched worker makes of it: the value of its body.
        backends: On which backends the row has cells.
        options: For ``apply_async``.
        errbacks: How often its errback is called when it fails: once for each of its results.
        fails: Whether it fails where failed members are not tolerated; otherwise it gives the
            same value there.
    """

    defect: str
    name: str
    canvas: Callable[[Any], Any]
    expected: Any
    backends: tuple[str, ...] = ALL
    options: dict[str, Any] = field(default_factory=dict)
    fails: bool = True
    errbacks: int = 1

    def __str__(self) -> str:
        return f"{self.defect} {self.name}"

    def has_cell(self, backend: str) -> bool:
        """Tell whether the row has a cell on `backend`: with a ledger of its own all have one."""
        return backend in self.backends or backend in WITH_OWN_LEDGER


#: What takes the place of a member, see `tests.canvases.model`.
FAILING_CHORD_OF_CHORDS = {
    "chord": [{"task": "member", "does": "fails"}],
    "body": {
        "chord": [{"task": "second", "does": "returns"}],
        "body": {"task": "last", "does": "returns"},
    },
    "choice": {"tolerate": False},
}
CHORD_WITH_A_CHAIN = {
    "chord": [{"task": "member", "does": "returns"}],
    "body": {"chain": [{"task": "first", "does": "returns"}, {"task": "last", "does": "returns"}]},
}

#: Run by workers with ``chord_propagate_errors = False``, which stock does not know.
TOLERANT = (
    Scenario(
        "A1",
        "flat header",
        lambda t: chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], t.collect.s()),
        [1, BOOM, 3],
    ),
    Scenario(
        "A1",
        "all members fail",
        lambda t: chord([t.fail.s("a"), t.fail.s("b")], t.collect.s()),
        ["ValueError: a", "ValueError: b"],
    ),
    Scenario(
        "A1",
        "groups in the header",
        lambda t: chord(
            [t.echo.s(1), group(t.fail.s(), group(t.echo.s(2), t.fail.s("b"))), t.echo.s(3)],
            t.collect.s(),
        ),
        [1, BOOM, 2, "ValueError: b", 3],
    ),
    Scenario(
        "A1",
        "chain ending in a task",
        lambda t: chord([chain(t.fail.s(), t.echo.s()), t.echo.s(3)], t.collect.s()),
        [BOOM, 3],
    ),
    Scenario(
        "A1",
        "generator header",
        lambda t: chord((t.fail.s() if i == 2 else t.echo.s(i) for i in range(5)), t.collect.s()),
        [0, 1, BOOM, 3, 4],
    ),
    Scenario(
        "A1",
        "chord in the header",
        lambda t: chord(
            [t.echo.s(1), chord([t.echo.s(2), t.fail.s()], t.collect.s())], t.collect.s()
        ),
        [1, [2, BOOM]],
    ),
    Scenario(
        "A1",
        "chord in the header, its body fails",
        lambda t: chord(
            [t.echo.s(1), chord([t.echo.s(2), t.echo.s(3)], t.fail_after.s())], t.collect.s()
        ),
        [1, BOOM],
    ),
    Scenario(
        "A1",
        "chord in the header fails (strict)",
        lambda t: chord(
            [t.echo.s(1), tolerant(chord([t.fail.s(), t.echo.s(2)], t.collect.s()), max_errors=0)],
            t.collect_types.s(),
        ),
        ["int", "ChordError"],
    ),
    Scenario(
        "A1",
        "body is a group",
        lambda t: chord([t.echo.s(1), t.fail.s()], group(t.collect.s(), t.collect.s())),
        [[1, BOOM], [1, BOOM]],
        errbacks=2,
    ),
    Scenario(
        "A1",
        "body is a chain",
        lambda t: chord([t.echo.s(1), t.fail.s()], chain(t.collect.s(), t.echo.s())),
        [1, BOOM],
    ),
    Scenario(
        "A1",
        "body is a chord",
        lambda t: chord(
            [t.echo.s(1), t.fail.s()], chord([t.collect.s(), t.collect.s()], t.collect.s())
        ),
        [[1, BOOM], [1, BOOM]],  # A3
    ),
    Scenario(
        "A1",
        "member replaced by a failing task",
        lambda t: chord([t.replace_with_fail.s(), t.replace_with.s(2)], t.collect.s()),
        [BOOM, 2],
    ),
    Scenario(
        "A1",
        "member gives up its retries",
        lambda t: chord([t.retry_in_vain.s(), t.retry_then.s(2)], t.collect.s()),
        ["ValueError: gave up", 2],
    ),
    Scenario(
        "A1",
        "killed child (SIGKILL)",
        lambda t: chord([t.kill_self.s(9), t.echo.s(2)], t.collect_types.s()),
        ["WorkerLostError", "int"],
    ),
    Scenario(
        "A1",
        "killed child (SIGABRT)",
        lambda t: chord([t.kill_self.s(6), t.echo.s(2)], t.collect_types.s()),
        ["WorkerLostError", "int"],
    ),
    Scenario(
        "A1",
        "hard time limit",
        lambda t: chord([t.exceed_hard_limit.s(), t.echo.s(2)], t.collect_types.s()),
        ["TimeLimitExceeded", "int"],
    ),
    Scenario(
        "A1",
        "soft time limit",
        lambda t: chord([t.exceed_soft_limit.s(), t.echo.s(2)], t.collect_types.s()),
        ["SoftTimeLimitExceeded", "int"],
    ),
    Scenario(
        "A1",
        "expired member (revoked)",
        lambda t: chord([t.echo.s(1).set(expires=-1), t.echo.s(2)], t.collect_types.s()),
        ["TaskRevokedError", "int"],
    ),
    Scenario(
        "A1",
        "exception with two arguments",
        lambda t: chord([t.fail_with.s("two_arguments"), t.echo.s(2)], t.collect.s()),
        ["TwoArgumentError: 1-2", 2],
    ),
    Scenario(
        "A1",
        "exception that cannot be pickled",
        lambda t: chord([t.fail_with.s("unpicklable"), t.echo.s(2)], t.collect.s()),
        ["UnpicklableError: boom", 2],
    ),
    Scenario(
        "A1",
        "exception whose str() raises",
        lambda t: chord([t.fail_with.s("raising_str"), t.echo.s(2)], t.collect_types.s()),
        ["RaisingStrError", "int"],
    ),
    Scenario(
        "A1",
        "dict format, per chord",
        lambda t: chord(
            [t.fail.s(), t.echo.s(2)], tolerant(t.collect_types.s(), error_format="dict")
        ),
        ["dict", "int"],
        fails=False,
    ),
    Scenario(
        "A1b",
        "chain ending in a group, a member of it fails",
        lambda t: chord(
            [t.echo.s(1), chain(t.echo.s(2), group(t.fail_after.s(), t.echo.s())), t.echo.s(3)],
            t.collect.s(),
        ),
        [1, [BOOM, 2], 3],
    ),
    Scenario(
        "A1b",
        "chain fails before its group",
        lambda t: chord(
            [chain(t.fail.s(), group(t.echo.s(), t.echo.s())), t.echo.s(3)], t.collect.s()
        ),
        [[BOOM, BOOM], 3],  # A14
    ),
    Scenario(
        "A1b",
        "chain fails before its chord",
        lambda t: chord(
            [chain(t.fail.s(), group(t.echo.s(), t.echo.s()), t.collect.s()), t.echo.s(3)],
            t.collect.s(),
        ),
        [BOOM, 3],
    ),
    Scenario(
        "B1",
        "generator header",
        lambda t: chord((t.echo.s(i) for i in range(12)), t.collect.s()),
        list(range(12)),
        fails=False,
    ),
    Scenario(
        "B1",
        "generator header, in order",
        lambda t: chord((t.echo.s(i) for i in (5, 3, 9, 1, 10, 2)), t.collect.s()),
        [5, 3, 9, 1, 10, 2],
        fails=False,
    ),
    Scenario(
        "B10",
        "group in the header, in order",
        lambda t: chord(
            [t.echo.s("a"), group(t.echo.s("b"), t.echo.s("c")), t.echo.s("d")], t.collect.s()
        ),
        ["a", "b", "c", "d"],
        fails=False,
    ),
    Scenario(
        "B9",
        "member whose result is ignored",
        lambda t: chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s()),
        [1, 2],
        fails=False,
    ),
    # Groups and chords in places where few have put them.
    Scenario(
        "A15",
        "member replaced by a chord of chords, which fails",
        lambda t: chord(
            [t.replaced_step.s(node=FAILING_CHORD_OF_CHORDS), t.echo.s(2)], t.collect_types.s()
        ),
        ["ChordError", "int"],
    ),
    Scenario(
        "B13",
        "group in a generator header",
        lambda t: chord(
            (
                member
                for member in [t.echo.s(0), group(t.echo.s(i) for i in range(1, 8)), t.echo.s(8)]
            ),
            t.collect.s(),
        ),
        list(range(9)),
        fails=False,
    ),
    Scenario(
        "B14",
        "group after a chord whose body is a group",
        lambda t: (
            chord([t.echo.s(1)], group(t.collect.s(), t.collect.s()))
            | group(t.collect.s(), t.collect.s())
        ),
        [[[1], [1]], [[1], [1]]],
        fails=False,
    ),
    Scenario(
        "B15",
        "chord in the group that a chain ends in",
        lambda t: chord(
            [
                chain(t.echo.s(1), group(chord([t.echo.s()], t.collect.s()), t.echo.s())),
                t.echo.s(2),
            ],
            t.collect.s(),
        ),
        [[[1], 1], 2],
        fails=False,
    ),
    Scenario(
        "B16",
        "member replaced by a chord whose body is a chain",
        lambda t: chord([t.replaced_step.s(node=CHORD_WITH_A_CHAIN), t.echo.s(2)], t.collect.s()),
        [["last", ["first", [["member"]]]], 2],
        fails=False,
    ),
    # Members that end without a result.
    Scenario(
        "A10",
        "member raises Ignore",
        lambda t: chord([t.ignore.s(), t.echo.s(2)], t.collect.s()),
        ["Ignore: ", 2],
    ),
    Scenario(
        "A10",
        "member stores its state, then raises Ignore",
        lambda t: chord([t.store_then_ignore.s("SUCCESS", 1), t.echo.s(2)], t.collect.s()),
        [1, 2],
        fails=False,
    ),
    Scenario(
        "A10",
        "step of a chain raises Ignore",
        lambda t: chord([chain(t.ignore.s(), t.echo.s()), t.echo.s(2)], t.collect.s()),
        ["Ignore: ", 2],
    ),
    Scenario(
        "A10",
        "member rejects its message",
        lambda t: chord([t.reject.s(), t.echo.s(2)], t.collect.s()),
        ["Reject: ('rejected', False)", 2],
    ),
    Scenario(
        "A11",
        "member is not registered",
        lambda t: chord([signature(NOT_REGISTERED), t.echo.s(2)], t.collect.s()),
        [f"NotRegistered: {NOT_REGISTERED}", 2],
    ),
    Scenario(
        "A11",
        "member in a group is not registered",
        lambda t: chord(
            [group(t.echo.s(1), group(signature(NOT_REGISTERED))), t.echo.s(2)], t.collect.s()
        ),
        [1, f"NotRegistered: {NOT_REGISTERED}", 2],
    ),
    Scenario(
        "A11",
        "step of a chain is not registered",
        lambda t: chord([chain(signature(NOT_REGISTERED), t.echo.s()), t.echo.s(2)], t.collect.s()),
        [f"NotRegistered: {NOT_REGISTERED}", 2],
    ),
    Scenario(
        "A16",
        "member in a serializer that is refused",
        lambda t: chord([t.echo.s(1).set(serializer="pickle"), t.echo.s(2)], t.collect.s()),
        [REFUSED, 2],
    ),
    Scenario(
        "A16",
        "last step of a chain in a serializer that is refused",
        lambda t: chord(
            [chain(t.echo.s(1), t.echo.s().set(serializer="pickle")), t.echo.s(2)], t.collect.s()
        ),
        [REFUSED, 2],
    ),
    Scenario(
        "A16",
        "step of a chain whose eta makes no sense",
        lambda t: chord(
            [chain(t.echo.s(1).set(headers={"eta": "soon"}), t.echo.s()), t.echo.s(2)],
            t.collect_types.s(),
        ),
        ["InvalidTaskError", "int"],
    ),
    # What people do in the field, each out of a report.
    Scenario(
        "A19",
        "member returns what no message can carry",
        lambda t: chord([t.echo.s(1), t.unsendable.s()], t.collect_types.s()),
        ["int", "EncodeError"],
    ),
    Scenario(
        "field",
        "member whose result is ignored, replaced by a chord",
        lambda t: chord([t.replace_ignored_with_chord.s([1, 2]), t.echo.s(3)], t.collect.s()),
        [[1, 2], 3],
        fails=False,
    ),
    Scenario(
        "field",
        "chunks",
        lambda t: chord(t.add.chunks([(0, 0), (1, 1), (2, 2), (3, 3)], 2).group(), t.collect.s()),
        [[0, 2], [4, 6]],
        fails=False,
    ),
    Scenario(
        "field",
        "map and starmap",
        lambda t: chord([t.echo.map([1, 2]), t.add.starmap([(1, 2), (3, 4)])], t.collect.s()),
        [[1, 2], [3, 7]],
        fails=False,
    ),
    Scenario(
        "field",
        "member with autoretry_for",
        lambda t: chord([t.fail_once.s(1), t.echo.s(2)], t.collect.s()),
        [1, 2],
        fails=False,
    ),
    Scenario(
        "field",
        "member with a link",
        lambda t: chord([t.echo.signature((1,), link=t.echo.s()), t.echo.s(2)], t.collect.s()),
        [1, 2],
        fails=False,
    ),
    Scenario(
        "field",
        "member with countdown and expires",
        lambda t: chord([t.echo.s(1).set(countdown=0.2, expires=60), t.echo.s(2)], t.collect.s()),
        [1, 2],
        fails=False,
    ),
    Scenario(
        "field",
        "built again from its JSON",
        lambda t: maybe_signature(
            json.loads(json.dumps(chord([t.echo.s(1), t.echo.s(2)], t.collect.s()))),
            app=t.echo.app,
        ),
        [1, 2],
        fails=False,
    ),
    Scenario(
        "field",
        "the same chain twice",
        lambda t: (lambda same: chord(group(same, same), t.collect.s()))(
            chain(t.echo.s(1), t.echo.s())
        ),
        [1, 1],
        fails=False,
    ),
    Scenario(
        "field",
        "generator of chains",
        lambda t: chord((chain(t.echo.s(i), t.echo.s()) for i in range(3)), t.collect.s()),
        [0, 1, 2],
        fails=False,
    ),
)

#: What the workers need whose chords call their errbacks for their results alone.
ERRBACKS_ONCE = {"chord_fix_header_errbacks": True}

#: Chords that fail. A8: with ``task_allow_error_cb_on_chord_header`` and, on patched workers,
#: ``chord_fix_header_errbacks`` their errback is called once for each result. A9: their error names
#: so many members that failed.
STRICT = (
    Scenario(
        "A8",
        "errback, two members fail",
        lambda t: chord([t.fail.s("a"), t.fail.s("b"), t.echo.s(3)], t.collect.s()),
        None,
    ),
    Scenario(
        "A8",
        "errback, chord in the header",
        lambda t: chord([chord([t.fail.s(), t.echo.s(1)], t.collect.s()), t.echo.s(2)], t.tsum.s()),
        None,
    ),
    Scenario(
        "A8",
        "errback, body is a group",
        lambda t: chord([t.fail.s(), t.echo.s(1)], group(t.collect.s(), t.collect.s())),
        None,
        errbacks=2,
    ),
    Scenario(
        "A8",
        "errback, body is a chord",
        lambda t: chord([t.fail.s(), t.echo.s(1)], chord([t.collect.s()], t.collect.s())),
        None,  # A3
    ),
    Scenario(
        "A8",
        "errback, hard time limit",
        lambda t: chord([t.exceed_hard_limit.s(), t.echo.s(2)], t.collect.s()),
        None,
    ),
    Scenario(
        "A9",
        "error names the members that failed",
        lambda t: chord([t.echo.s(1), t.fail.s("a"), group(t.fail.s("b"))], t.collect.s()),
        2,
    ),
)

#: Run by workers that look at a chord soon and often.
ASKED = (
    Scenario(
        "C2",
        "bound given with apply_async",
        lambda t: chord([t.echo.s(1), t.echo.s(2).set(queue=t.nowhere)], t.collect.s()),
        [1, "ChordMemberLost: no result of this header task arrived before the chord's bound"],
        SQL,
        {"max_retries": 3},
    ),
)

#: Run by workers with ``chord_unlock_max_retries``, which stock does not know.
BOUNDED = (
    Scenario(
        "C1",
        "bound given by the setting",
        lambda t: chord([t.echo.s(1), t.echo.s(2).set(queue=t.nowhere)], t.collect.s()),
        [1, "ChordMemberLost: no result of this header task arrived before the chord's bound"],
        SQL,
    ),
)

#: Run by workers that have a low bound for the poller among their task annotations, and no time
#: to read the results of a header.
ANNOTATED = (
    Scenario(
        "C2",
        "bound given by task_annotations",
        lambda t: chord([t.echo.s(1), t.echo.s(2).set(queue=t.nowhere)], t.collect.s()),
        [1, "ChordMemberLost: no result of this header task arrived before the chord's bound"],
        SQL,
    ),
    Scenario(
        "C7",
        "reading the results takes long",
        lambda t: chord([t.echo.s(1), t.echo.s(2)], t.collect.s()),
        [1, 2],
        SQL,
    ),
)
