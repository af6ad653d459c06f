"""All fixes, each in a module of its own."""

from __future__ import annotations

from importlib import import_module

#: In the order in which they are put on: a later one lies around an earlier one that wraps
#: the same function. `counted_chords` answers before `bounded_unlock` decides, and that before
#: `tolerant_unlock` joins; `ignored_results` forgets what these two have read; `half_sent_chords`
#: sees what they leave when it fails; `linear_waiting` watches the parents that
#: `tolerated_parents` leaves and `member_errors` asks once more.
ORDER = (
    "canvas.generator_headers",
    "canvas.generator_errors",
    "canvas.lazy_groups",
    "canvas.header_order",
    "canvas.nested_group_ids",
    "canvas.group_bodies",
    "canvas.linked_groups",
    "canvas.body_group_ids",
    "canvas.replaced_group_order",
    "canvas.per_chord_choice",
    "canvas.delayed_headers",
    "canvas.eager_chords",
    "worker.unpicklable_failures",
    "worker.uninterrupted_parts",
    "worker.ignored_members",
    "worker.unregistered_members",
    "worker.unreadable_members",
    "results.chain_failures",
    "results.chord_failures",
    "results.header_errbacks",
    "results.tolerated_parents",
    "results.member_errors",
    "results.linear_waiting",
    "redis.collected_results",
    "redis.tolerant_parts",
    "redis.counted_parts",
    "database.tolerant_unlock",
    "database.bounded_unlock",
    "database.routed_unlock",
    "database.wide_results",
    "database.atomic_results",
    "database.ignored_results",
    "database.counted_chords",
    "canvas.half_sent_chords",
)

for _name in ORDER:
    import_module(f".{_name}", __name__)
