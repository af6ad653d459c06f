"""Run the worker of a lane: ``python -m chordguard.demo.worker LANE``.

Not through the ``celery`` command, since that of Celery 5.2.7 does not start on Python 3.12.
"""

from __future__ import annotations

import sys
from typing import Any

from celery.signals import task_retry

from .lane import Lane, make_app

__all__ = ("main",)

#: Pool processes of each worker.
CONCURRENCY = 2


def main(text: str) -> int:
    """Work until killed."""
    lane = Lane.from_json(text)
    app = make_app(lane)

    def note_poll(sender: Any = None, request: Any = None, **_: Any) -> None:
        """Write down that a chord was polled: each poll is a retry."""
        if sender.name == "celery.chord_unlock":
            with lane.polls.open("a") as polls:
                polls.write(f"{request.args[0]}\n")

    task_retry.connect(note_poll, weak=False)
    worker = app.Worker(
        pool="prefork",
        concurrency=CONCURRENCY,
        hostname=f"{lane.name}@demo",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return worker.exitcode or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
