"""Start a chord of 1,000 members and die half-way: ``python -m tests.chaos.producer ARGUMENTS``."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from celery import chord, group
from celery.signals import after_task_publish

from chordguard import strict, tolerant
from tests import tasks
from tests.app_factory import make_app


def main(config: dict[str, Any], body_id: str, group_id: str, is_tolerant: bool) -> None:
    app = make_app(config, patched=True)
    t = tasks.named(app)
    sent = 0

    @after_task_publish.connect(weak=False)
    def count(**_: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 500:
            os.kill(os.getpid(), signal.SIGKILL)

    header = group([t.echo.s(index) for index in range(1000)])
    header.options["task_id"] = group_id
    body = (tolerant if is_tolerant else strict)(t.sure_collect.s())
    chord(header, body).apply_async(task_id=body_id)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
