"""The command `clean`: what ended and expired chords have left behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from celery.utils.time import maybe_timedelta

from ..ledger.access import bounded_ledger
from ..ledger.model import Ledger
from ..ledger.tallies import ENDED, End
from ..recovery.evidence import examine_all
from ..recovery.kinds import BODY_DONE
from ..upstream import backends
from ..upstream.workers import broker_of
from .calling import HEALTHY, PROBLEMS, Answer, Cannot, command, say
from .screen import Screen

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("clean",)


@command("clean")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only count.")
@click.option("--all-queues", "is_purging", is_flag=True, help="Also count what is in the queues.")
@click.option("--force", "is_forced", is_flag=True, help="Purge them, with all tasks in them.")
def clean(app: Celery, is_dry_run: bool, is_purging: bool, is_forced: bool) -> Answer:
    """Remove what ended chords left behind.

    That is records and keys of chords that have ended or expired. Live chords are left alone.
    Queues are purged with --all-queues --force only: that loses every task that waits there,
    members of live chords among them. Exit status 1 where something is left to be removed.
    """
    if is_forced and not is_purging:
        raise Cannot("--force is for --all-queues: expected both, or neither")
    with bounded_ledger(app) as ledger:
        left = _left_behind(ledger)
        if not is_dry_run:
            _remove(ledger, left)
    is_purged = is_forced and not is_dry_run
    queues = _queues(app, is_purged=is_purged) if is_purging else {}
    data: dict[str, Any] = {
        "ended": left.ended,
        "expired": left.expired,
        "abandoned": left.abandoned,
        "removed": not is_dry_run,
        "queues": queues if is_purging else None,
        "purged": is_purged,
    }

    def show(screen: Screen) -> None:
        removed = "found" if is_dry_run else "removed"
        rows = [
            ("ended, still in the ledger", str(len(left.ended))),
            ("expired, still in the index", str(len(left.expired))),
            ("abandoned", str(left.abandoned)),
        ]
        screen.table(("chords", removed), rows)
        if queues:
            screen.line()
            titles = ("queue", "messages purged" if is_purged else "messages")
            screen.table(titles, [(name, str(count)) for name, count in queues.items()])

    waiting = sum(queues.values())
    note = "Nothing was purged: add --force" if waiting and not is_purged else ""
    is_left = (is_dry_run and left.count) or (waiting and not is_purged)
    return Answer(PROBLEMS if is_left else HEALTHY, data, show, note)


@dataclass(frozen=True)
class Leftovers:
    """What chords have left behind.

    Attributes:
        ended: Chords whose body was published and that are still in the ledger.
        expired: Chords that the index names and that are not there any more.
        abandoned: How many had no progress for twice `result_expires` (SQL).
    """

    ended: list[str]
    expired: list[str]
    abandoned: int = 0

    @property
    def count(self) -> int:
        """How many chords left something."""
        return len(self.ended) + len(self.expired) + self.abandoned


def _left_behind(ledger: Ledger) -> Leftovers:
    found = examine_all(ledger, ledger.group_ids(), is_thorough=True)
    before = _abandoned_before(ledger)
    return Leftovers(
        [one.group_id for one in found if one.kind == BODY_DONE],
        [one.group_id for one in found if one.record is None],
        sum(
            one.record is not None and one.kind != BODY_DONE and one.record.progressed < before
            for one in found
        ),
    )


def _remove(ledger: Any, left: Leftovers) -> None:
    for group_id in [*left.ended, *left.expired]:
        ledger.close(group_id, End(ENDED))
    if backends.keeps_rows(ledger.backend):
        # Members whose chord is gone, too.
        ledger.forget_abandoned(_abandoned_before(ledger))


def _abandoned_before(ledger: Ledger) -> float:
    """Return since when a chord on SQL may have had no progress (Unix time)."""
    backend = ledger.backend
    if not backend.expires or not backends.keeps_rows(backend):
        return 0.0
    seconds: float = maybe_timedelta(backend.expires).total_seconds()
    return time.time() - 2 * seconds


def _queues(app: Celery, *, is_purged: bool) -> dict[str, int]:
    """Return how many messages wait, or waited, in each queue of the app."""
    counts = {}
    with broker_of(app) as connection:
        for queue in app.amqp.queues.values():
            with connection.channel() as channel:
                counts[queue.name] = _count(channel, connection, queue)
        if is_purged:
            say("".join(f"{name}: {count} messages\n" for name, count in counts.items()))
            for queue in app.amqp.queues.values():
                with connection.channel() as channel:
                    queue.bind(channel).purge()
    return counts


def _count(channel: Any, connection: Any, queue: Any) -> int:
    # A passive look finds no queue on Redis that has the global prefix. The other one makes none.
    is_passive = connection.transport.driver_type != "redis"
    try:
        return int(queue.bind(channel).queue_declare(passive=is_passive).message_count)
    except connection.channel_errors:
        return 0  # no such queue
