"""All fixes, each in a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.report import Outcome, outcome_of
from .canvas import (
    body_group_ids,
    bulk_headers,
    delayed_headers,
    eager_chords,
    generator_errors,
    generator_headers,
    group_bodies,
    half_sent_chords,
    header_order,
    lazy_groups,
    linked_groups,
    nested_group_ids,
    per_chord_choice,
    replaced_group_order,
)
from .counting import counter_safety_net, forked_backends, incremented_parts
from .database import atomic_results, counted_chords, wide_results
from .django import (
    django_abandoned_counters,
    django_atomic_results,
    django_counted_chords,
    django_ignored_results,
    django_tolerant_parts,
)
from .polling import bounded_unlock, ignored_results, routed_unlock, tolerant_unlock
from .redis import collected_results, counted_parts, tolerant_parts
from .results import (
    chain_failures,
    chord_failures,
    counted_progress,
    header_errbacks,
    linear_waiting,
    member_errors,
    own_ledger,
    tolerated_parents,
)
from .worker import (
    ignored_members,
    uninterrupted_parts,
    unpicklable_failures,
    unreadable_members,
    unregistered_members,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from ..engine.patch import Patch

__all__ = ("ORDER", "outcomes", "registry")

#: In the order in which they are put on: a later one lies around an earlier one that wraps
#: the same function. `counted_chords` answers before `bounded_unlock` decides, and that before
#: `tolerant_unlock` joins; `ignored_results` stores what these two and `incremented_parts` read,
#: and forgets it; `counter_safety_net` sends what looks at the counters of `incremented_parts`;
#: `own_ledger` counts before any other does; `half_sent_chords` sees what they leave when it fails,
#: and the messages before `bulk_headers` keeps them; `linear_waiting` watches the parents that
#: `tolerated_parents` leaves and `member_errors` asks once more.
ORDER = (
    generator_headers,
    generator_errors,
    lazy_groups,
    header_order,
    nested_group_ids,
    group_bodies,
    linked_groups,
    body_group_ids,
    replaced_group_order,
    per_chord_choice,
    delayed_headers,
    eager_chords,
    unpicklable_failures,
    uninterrupted_parts,
    ignored_members,
    unregistered_members,
    unreadable_members,
    chain_failures,
    chord_failures,
    header_errbacks,
    tolerated_parents,
    member_errors,
    linear_waiting,
    counted_progress,
    collected_results,
    tolerant_parts,
    counted_parts,
    tolerant_unlock,
    bounded_unlock,
    routed_unlock,
    wide_results,
    atomic_results,
    forked_backends,
    incremented_parts,
    ignored_results,
    counter_safety_net,
    counted_chords,
    django_tolerant_parts,
    django_atomic_results,
    django_ignored_results,
    django_counted_chords,
    django_abandoned_counters,
    own_ledger,
    bulk_headers,
    half_sent_chords,
)


def by_name(patches: Iterable[Patch]) -> dict[str, Patch]:
    """Return the patches by their names.

    Raises:
        ValueError: Two of them have the same name.
    """
    named: dict[str, Patch] = {}
    for patch in patches:
        if patch.name in named:
            raise ValueError(f"two patches are called {patch.name!r}")
        named[patch.name] = patch
    return named


#: Every fix by its name, in the order in which they are put on.
registry = by_name(module.patch for module in ORDER)


def outcomes(app: Celery) -> list[Outcome]:
    """Return what became of each patch for `app`."""
    return [outcome_of(patch, app) for patch in registry.values()]
