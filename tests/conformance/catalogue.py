"""The catalogue of defects as data: a canvas, what stock does with it, what must happen.

Each scenario is run on stock and on patched workers, on every backend that it concerns. What
stock does is part of the catalogue: when Celery mends a defect we want to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group

from chordguard import tolerant
from chordguard._patch import celery_5_3, celery_5_7, celery_version

if TYPE_CHECKING:
    from collections.abc import Callable

#: What can become of a canvas.
RIGHT, FAILS, HANGS, WRONG, RAISES = "right", "fails", "hangs", "wrong", "raises"

REDIS, SQLITE, POSTGRESQL = "redis", "sqlite", "postgresql"
SQL = (SQLITE, POSTGRESQL)
ALL = (REDIS, *SQL)

BOOM = "ValueError: boom"


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        defect: The id of the defect in the README's table.
        name: What the canvas is, in a few words.
        canvas: Makes it, given the tasks of the tests by name.
        expected: What a patched worker makes of it: the value of its body.
        stock: Gives what stock does, from the backend; one of several where it depends on luck.
        backends: On which backends the row has cells.
        options: For ``apply_async``.
    """

    defect: str
    name: str
    canvas: Callable[[Any], Any]
    expected: Any
    stock: Callable[[str], str | tuple[str, ...]]
    backends: tuple[str, ...] = ALL
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.defect} {self.name}"


def always(*outcomes: str) -> Callable[[str], str | tuple[str, ...]]:
    return lambda backend: outcomes


def before_5_7(*outcomes: str, then: str) -> Callable[[str], str | tuple[str, ...]]:
    return lambda backend: outcomes if celery_version() < celery_5_7 else (then,)


def generator(ok: str) -> Callable[[str], str | tuple[str, ...]]:
    """B1: before 5.3 a generator header hangs on SQL."""
    lost = celery_version() < celery_5_3
    return lambda backend: (HANGS,) if lost and backend != REDIS else (ok,)


def nested_in_chain(*outcomes: str) -> Callable[[str], str | tuple[str, ...]]:
    """B3: before 5.7 Redis loses count of a chain that ends in a group."""
    lost = celery_version() < celery_5_7
    return lambda backend: (HANGS, WRONG, FAILS, RIGHT) if lost and backend == REDIS else outcomes


def hangs_in_chain_step(backend: str) -> tuple[str, ...]:
    """A6: before 5.7 the failure of a chain does not reach its chord step."""
    return (HANGS,) if celery_version() < celery_5_7 else (FAILS,)


def nested_chord(backend: str) -> tuple[str, ...]:
    """A2: on Redis the failure of a chord in the header never reaches the outer chord."""
    return (HANGS,) if backend == REDIS else (FAILS,)


#: Run by workers with ``chord_propagate_errors = False``, which stock does not know.
TOLERANT = (
    Scenario(
        "A1",
        "flat header",
        lambda t: chord([t.echo.s(1), t.fail.s(), t.echo.s(3)], t.collect.s()),
        [1, BOOM, 3],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "all members fail",
        lambda t: chord([t.fail.s("a"), t.fail.s("b")], t.collect.s()),
        ["ValueError: a", "ValueError: b"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "groups in the header",
        lambda t: chord(
            [t.echo.s(1), group(t.fail.s(), group(t.echo.s(2), t.fail.s("b"))), t.echo.s(3)],
            t.collect.s(),
        ),
        [1, BOOM, 2, "ValueError: b", 3],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "chain ending in a task",
        lambda t: chord([chain(t.fail.s(), t.echo.s()), t.echo.s(3)], t.collect.s()),
        [BOOM, 3],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "generator header",
        lambda t: chord((t.fail.s() if i == 2 else t.echo.s(i) for i in range(5)), t.collect.s()),
        [0, 1, BOOM, 3, 4],
        generator(FAILS),
    ),
    Scenario(
        "A1",
        "chord in the header",
        lambda t: chord(
            [t.echo.s(1), chord([t.echo.s(2), t.fail.s()], t.collect.s())], t.collect.s()
        ),
        [1, [2, BOOM]],
        nested_chord,
    ),
    Scenario(
        "A1",
        "chord in the header, its body fails",
        lambda t: chord(
            [t.echo.s(1), chord([t.echo.s(2), t.echo.s(3)], t.fail_after.s())], t.collect.s()
        ),
        [1, BOOM],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "chord in the header fails (strict)",
        lambda t: chord(
            [t.echo.s(1), tolerant(chord([t.fail.s(), t.echo.s(2)], t.collect.s()), max_errors=0)],
            t.collect_types.s(),
        ),
        ["int", "ChordError"],
        nested_chord,
    ),
    Scenario(
        "A1",
        "body is a group",
        lambda t: chord([t.echo.s(1), t.fail.s()], group(t.collect.s(), t.collect.s())),
        [[1, BOOM], [1, BOOM]],
        # A5: before 5.6 nobody fails the members of the group.
        lambda backend: (HANGS,) if celery_version() < (5, 6) else (FAILS,),
    ),
    Scenario(
        "A1",
        "body is a chain",
        lambda t: chord([t.echo.s(1), t.fail.s()], chain(t.collect.s(), t.echo.s())),
        [1, BOOM],
        # A4: before 5.6 the body has no id to be failed under.
        lambda backend: (HANGS,) if celery_version() < (5, 6) else (FAILS,),
    ),
    Scenario(
        "A1",
        "body is a chord",
        lambda t: chord(
            [t.echo.s(1), t.fail.s()], chord([t.collect.s(), t.collect.s()], t.collect.s())
        ),
        [[1, BOOM], [1, BOOM]],
        always(HANGS),  # A3
    ),
    Scenario(
        "A1",
        "member replaced by a failing task",
        lambda t: chord([t.replace_with_fail.s(), t.replace_with.s(2)], t.collect.s()),
        [BOOM, 2],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "member gives up its retries",
        lambda t: chord([t.retry_in_vain.s(), t.retry_then.s(2)], t.collect.s()),
        ["ValueError: gave up", 2],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "killed child (SIGKILL)",
        lambda t: chord([t.kill_self.s(9), t.echo.s(2)], t.collect_types.s()),
        ["WorkerLostError", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "killed child (SIGABRT)",
        lambda t: chord([t.kill_self.s(6), t.echo.s(2)], t.collect_types.s()),
        ["WorkerLostError", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "hard time limit",
        lambda t: chord([t.exceed_hard_limit.s(), t.echo.s(2)], t.collect_types.s()),
        ["TimeLimitExceeded", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "soft time limit",
        lambda t: chord([t.exceed_soft_limit.s(), t.echo.s(2)], t.collect_types.s()),
        ["SoftTimeLimitExceeded", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "expired member (revoked)",
        lambda t: chord([t.echo.s(1).set(expires=-1), t.echo.s(2)], t.collect_types.s()),
        ["TaskRevokedError", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "exception with two arguments",
        lambda t: chord([t.fail_with.s("two_arguments"), t.echo.s(2)], t.collect.s()),
        ["TwoArgumentError: 1-2", 2],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "exception that cannot be pickled",
        lambda t: chord([t.fail_with.s("unpicklable"), t.echo.s(2)], t.collect.s()),
        ["UnpicklableError: boom", 2],
        always(FAILS),
    ),
    Scenario(
        "A1",
        "exception whose str() raises",
        lambda t: chord([t.fail_with.s("raising_str"), t.echo.s(2)], t.collect_types.s()),
        ["RaisingStrError", "int"],
        # The poller itself fails over the text of the error that it wants to report.
        lambda backend: (FAILS,) if backend == REDIS else (HANGS,),
    ),
    Scenario(
        "A1",
        "dict format, per chord",
        lambda t: chord(
            [t.fail.s(), t.echo.s(2)], tolerant(t.collect_types.s(), error_format="dict")
        ),
        ["dict", "int"],
        always(FAILS),
    ),
    Scenario(
        "A1b",
        "chain ending in a group, a member of it fails",
        lambda t: chord(
            [t.echo.s(1), chain(t.echo.s(2), group(t.fail_after.s(), t.echo.s())), t.echo.s(3)],
            t.collect.s(),
        ),
        [1, [BOOM, 2], 3],
        nested_in_chain(FAILS),
    ),
    Scenario(
        "A1b",
        "chain fails before its group",
        lambda t: chord(
            [chain(t.fail.s(), group(t.echo.s(), t.echo.s())), t.echo.s(3)], t.collect.s()
        ),
        [[BOOM, BOOM], 3],
        always(HANGS),  # A14
    ),
    Scenario(
        "A1b",
        "chain fails before its chord",
        lambda t: chord(
            [chain(t.fail.s(), group(t.echo.s(), t.echo.s()), t.collect.s()), t.echo.s(3)],
            t.collect.s(),
        ),
        [BOOM, 3],
        hangs_in_chain_step,
    ),
    Scenario(
        "B1",
        "generator header",
        lambda t: chord((t.echo.s(i) for i in range(12)), t.collect.s()),
        list(range(12)),
        generator(RIGHT),
    ),
    Scenario(
        "B2",
        "generator header, in order",
        lambda t: chord((t.echo.s(i) for i in (5, 3, 9, 1, 10, 2)), t.collect.s()),
        [5, 3, 9, 1, 10, 2],
        generator(RIGHT),
    ),
    Scenario(
        "B10",
        "group in the header, in order",
        lambda t: chord(
            [t.echo.s("a"), group(t.echo.s("b"), t.echo.s("c")), t.echo.s("d")], t.collect.s()
        ),
        ["a", "b", "c", "d"],
        always(WRONG),
    ),
    Scenario(
        "B9",
        "member whose result is ignored",
        lambda t: chord([t.ignored_result.s(1), t.echo.s(2)], t.collect.s()),
        [1, 2],
        # The database holds nothing of it.
        lambda backend: (RIGHT,) if backend == REDIS else (HANGS,),
    ),
)

#: Run by workers that look at a chord soon and often.
ASKED = (
    Scenario(
        "C2",
        "bound given with apply_async",
        lambda t: chord([t.echo.s(1), t.echo.s(2).set(queue=t.nowhere)], t.collect.s()),
        [1, "ChordMemberLost: no result of this header task arrived before the chord's bound"],
        before_5_7(HANGS, then=FAILS),
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
        always(HANGS),
        SQL,
    ),
)

#: Run by workers that have a low bound for the poller among their task annotations.
ANNOTATED = (
    Scenario(
        "C2",
        "bound given by task_annotations",
        lambda t: chord([t.echo.s(1), t.echo.s(2).set(queue=t.nowhere)], t.collect.s()),
        [1, "ChordMemberLost: no result of this header task arrived before the chord's bound"],
        before_5_7(HANGS, then=FAILS),
        SQL,
    ),
)
