"""The chords of the demo, as data: what is run, and how it has to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group

from ..engine.versions import Version, celery_5_6, celery_5_7, celery_version
from ..patches import registry
from ..policy import strict, tolerant
from .lane import BACKENDS, NOBODYS_QUEUE

__all__ = ("FAILS", "MEMBERS", "SCENARIOS", "Scenario", "here")

#: Stands for a chord that has to fail.
FAILS = "fails"

#: Members of the chord that is waited for.
MEMBERS = 300

#: Seconds without progress after which a chord with a lost member is settled.
TIMEOUT = 2

REDIS, SQLITE = BACKENDS


@dataclass(frozen=True)
class Scenario:
    """A chord that shows a defect.

    Attributes:
        name: Its name, for the processes of the demo.
        title: What is run, for the table.
        defect: The id of the defect, as the README's table lists them.
        patch: The patch that mends it.
        build: Makes the canvas from the demo's tasks.
        expected: The value of the body, shortened as by `shortened`; or `FAILS`.
        backends: Where the defect is.
        until: The first Celery without it, where that is not the patch's own gate.
        watched: How its end is seen: by its stored "state", what "get" returns, "eager" (in
            the producer), or by the "reads" that get() needs.
    """

    name: str
    title: str
    defect: str
    patch: str
    build: Callable[[Any], Any]
    expected: Any
    backends: tuple[str, ...] = BACKENDS
    until: Version | None = None
    watched: str = "state"

    def is_here(self) -> bool:
        """Tell whether the installed Celery has the defect."""
        return registry[self.patch].is_needed() and (
            self.until is None or celery_version() < self.until
        )


def here(backend: str) -> list[Scenario]:
    """Return the scenarios that the installed Celery gets wrong with `backend`."""
    return [
        scenario for scenario in SCENARIOS if backend in scenario.backends and scenario.is_here()
    ]


def _one_fails(t: Any) -> Any:
    return chord([t.number.s(1), t.fail.s(), t.number.s(3)], t.collect.s())


def _inner_chord_fails(t: Any) -> Any:
    inner = strict(chord([t.number.s(2), t.fail.s()], t.collect.s()))
    return chord([t.number.s(1), inner], t.collect.s())


def _body_is_chord(t: Any) -> Any:
    body = chord([t.collect.s(), t.collect.s()], t.collect.s())
    return strict(chord([t.number.s(1), t.fail.s()], body))


def _body_is_chain(t: Any) -> Any:
    return strict(chord([t.number.s(1), t.fail.s()], chain(t.collect.s(), t.collect.s())))


def _chain_fails_before_chord(t: Any) -> Any:
    member = chain(t.fail.s(), group([t.add.s(1), t.add.s(2)]), t.collect.s())
    return chord([member, t.number.s(4)], t.collect.s())


def _chain_fails_before_group(t: Any) -> Any:
    return chord([chain(t.fail.s(), group([t.add.s(1), t.add.s(2)])), t.number.s(4)], t.collect.s())


def _chains_end_in_groups(t: Any) -> Any:
    first = chain(t.number.s(1), group([t.add.s(1), t.add.s(2)]))
    second = chain(t.number.s(4), group([t.add.s(1), t.add.s(2)]))
    return chord([first, second], t.collect.s())


def _group_in_header(t: Any) -> Any:
    return chord(
        [t.number.s(1), group([t.number.s(2), t.number.s(3)]), t.number.s(4)], t.collect.s()
    )


def _generator(t: Any) -> Any:
    return chord((t.number.s(value) for value in range(1, 6)), t.collect.s())


def _replaced(t: Any) -> Any:
    return chord([t.becomes_group.s([1, 2, 3, 4, 5]), t.number.s(6)], t.collect.s())


def _lost_member(t: Any) -> Any:
    lost = t.number.s(2).set(queue=NOBODYS_QUEUE)
    return tolerant(chord([t.number.s(1), lost], t.collect.s()), timeout=TIMEOUT)


def _many(t: Any) -> Any:
    return chord([t.slow_number.s(value) for value in range(MEMBERS)], t.collect.s())


#: In the order of the table.
SCENARIOS = (
    Scenario(
        "one_fails",
        "a header task fails: [1, fail, 3]",
        "A1",
        "tolerant_parts",
        _one_fails,
        [1, "ValueError: boom", 3],
    ),
    Scenario(
        "get",
        "get() on that chord",
        "A1c",
        "tolerated_parents",
        _one_fails,
        [1, "ValueError: boom", 3],
        watched="get",
    ),
    Scenario(
        "eager",
        "the same in eager mode",
        "A13",
        "eager_chords",
        _one_fails,
        [1, "ValueError: boom", 3],
        watched="eager",
    ),
    Scenario(
        "inner_chord_fails",
        "a chord in the header fails: [1, chord([2, fail])]",
        "A2",
        "chord_failures",
        _inner_chord_fails,
        [1, "ChordError: ValueError('boom')"],
        backends=(REDIS,),
    ),
    Scenario(
        "body_is_chord",
        "a strict chord fails, its body is a chord",
        "A3",
        "chord_failures",
        _body_is_chord,
        FAILS,
    ),
    Scenario(
        "body_is_chain",
        "a strict chord fails, its body is a chain",
        "A4",
        "chord_failures",
        _body_is_chain,
        FAILS,
        until=celery_5_6,
    ),
    Scenario(
        "chain_fails_before_chord",
        "a chain fails before a chord: [fail | group(a, b) | c, 4]",
        "A6",
        "chain_failures",
        _chain_fails_before_chord,
        ["ValueError: boom", 4],
        until=celery_5_7,
    ),
    Scenario(
        "chain_fails_before_group",
        "a chain fails before its last step, a group: [fail | group(a, b), 4]",
        "A14",
        "chain_failures",
        _chain_fails_before_group,
        [["ValueError: boom", "ValueError: boom"], 4],
    ),
    Scenario(
        "chains_end_in_groups",
        "chains end in groups: [1 | group(+1, +2), 4 | group(+1, +2)]",
        "B3",
        "nested_group_ids",
        _chains_end_in_groups,
        [[2, 3], [5, 6]],
        backends=(REDIS,),
    ),
    Scenario(
        "group_in_header",
        "a group in the header: [1, group(2, 3), 4]",
        "B10",
        "header_order",
        _group_in_header,
        [1, 2, 3, 4],
    ),
    Scenario(
        "generator",
        "a generator as the header: 1 to 5",
        "B1",
        "generator_headers",
        _generator,
        [1, 2, 3, 4, 5],
        backends=(SQLITE,),
    ),
    Scenario(
        "replaced",
        "a member replaces itself by a group: [group(1 to 5), 6]",
        "B12",
        "replaced_group_order",
        _replaced,
        [[1, 2, 3, 4, 5], 6],
        backends=(REDIS,),
    ),
    Scenario(
        "lost_member",
        f"a member never comes back, timeout={TIMEOUT}",
        "C1",
        "bounded_unlock",
        _lost_member,
        [1, "ChordMemberLost: ..."],
        backends=(SQLITE,),
    ),
    Scenario(
        "reads",
        f"get() waits for {MEMBERS} members",
        "C8",
        "linear_waiting",
        _many,
        list(range(MEMBERS)),
        watched="reads",
    ),
)
