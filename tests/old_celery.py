"""Let Celery 5.2.7 run on Pythons that are younger than it is.

So the oldest supported Celery is tested on every machine. It does not make 5.2.7 fit for use there.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import sys
from types import SimpleNamespace

import billiard.einfo
import celery
import celery.utils.imports

if celery.__version__ == "5.2.7" and sys.version_info >= (3, 12):
    # It looks for backends in a way that Python 3.12 has removed, and so finds none at all.
    celery.utils.imports.entry_points = lambda: SimpleNamespace(
        get=lambda group, default: importlib.metadata.entry_points(group=group)
    )

if celery.__version__ == "5.2.7" and sys.version_info >= (3, 13):
    # billiard 3.6 makes its logger between two functions that Python 3.13 has removed, and no
    # worker starts.
    logging._acquireLock = logging._lock.acquire  # type: ignore[attr-defined]
    logging._releaseLock = logging._lock.release  # type: ignore[attr-defined]

if sys.version_info >= (3, 11) and not hasattr(billiard.einfo._Code, "co_positions"):
    # What billiard 3.6 makes of a traceback cannot be formatted: logging it fails, and pytest
    # raises what logging would only print.
    billiard.einfo._Code.co_positions = lambda self: itertools.repeat((None,) * 4)
