"""Workers that die at a given step of a chord's end, as if the kernel had killed them.

A step is a function of chordguard, or of Celery for one that ends chords without it; a process
dies before it is called, or after it has returned. It may also hang there, or leave the step out.
"""

from __future__ import annotations

import builtins
import importlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import wrapt

from tests.tasks import append

#: The functions that the end of a chord goes through, in order, by backend.
STEPS = {
    "redis": {
        "store": "celery.backends.base:BaseKeyValueStoreBackend._store_result",
        "count": "chordguard.ledger.redis:RedisLedger.count",
        "collect": "chordguard.ledger.redis:RedisLedger.collect",
        "publish": "chordguard.lifecycle.ending:Ending.publish",
        "close": "chordguard.ledger.redis:RedisLedger.close",
    },
    "database": {
        "store": "celery.backends.database:DatabaseBackend._store_result",
        "count": "chordguard.ledger.sql:DatabaseLedger.store_and_count",
        "collect": "chordguard.ledger.sql:DatabaseLedger.collect",
        "publish": "chordguard.lifecycle.ending:Ending.publish",
        "close": "chordguard.ledger.sql:DatabaseLedger.close",
    },
    "django": {
        "store": "django_celery_results.backends.database:DatabaseBackend._store_result",
        "count": "chordguard.ledger.django:DjangoLedger.store_and_count",
        "collect": "chordguard.ledger.django:DjangoLedger.collect",
        "publish": "chordguard.lifecycle.ending:Ending.publish",
        "close": "chordguard.ledger.django:DjangoLedger.close",
    },
    "django alone": {
        "store": "django_celery_results.backends.database:DatabaseBackend._store_result",
        "publish": "django_celery_results.backends.database:trigger_callback",
    },
}

#: All of it, with the claim that the last part gave.
END = "chordguard.lifecycle.ending:end"

#: What sends a body, and no chord that fails.
PUBLISH = "chordguard.lifecycle.ending:_publish"

#: Where a process may die: (step, "before" or "after").
POINTS = tuple((step, when) for step in STEPS["redis"] for when in ("before", "after"))


def arrange(faults: dict[str, Any]) -> None:
    """Have this process, and its children, die as `faults` say.

    Its keys: ``backend`` (of STEPS); ``points``, a list of (step, when); ``share`` of the calls
    that are fatal; ``most``, how many processes die; ``folder``, where they count that; ``how``:
    "kill" unless given, "hang", "omit", which leaves out the end of the chord, or what strikes
    from outside instead of a death: "soft limit", or the name of a built-in exception.
    """
    dice = random.Random()
    if faults.get("how") == "omit":
        module, _, function = END.partition(":")
        wrapt.wrap_function_wrapper(module, function, _omitted(faults))
    for step, when in faults["points"]:
        module, _, path = STEPS[faults["backend"]][step].partition(":")
        importlib.import_module(module)
        wrapt.wrap_function_wrapper(module, path, _fatal(faults, when, dice))


def keep_journal(backend: str, path: str) -> None:
    """Add a line to the file for each part counted, body published, and chord forgotten.

    It says what was done, the id of the chord's body ("published") or header, and when.
    """

    def note(name: str, line_of: Any) -> None:
        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            answer = wrapped(*args, **kwargs)
            append(path, f"{line_of(args)} {time.time():.3f}")
            return answer

        module, _, function = {**STEPS[backend], "publish": PUBLISH}[name].partition(":")
        importlib.import_module(module)
        wrapt.wrap_function_wrapper(module, function, wrapper)

    note("count", lambda args: f"counted {args[0]}")
    note("publish", lambda args: f"published {args[1].id}")
    note("close", lambda args: f"closed {args[0]}")


def _omitted(faults: dict[str, Any]) -> Any:
    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return False if _is_next(faults) else wrapped(*args, **kwargs)

    return wrapper


def _fatal(faults: dict[str, Any], when: str, dice: random.Random) -> Any:
    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if when == "before":
            _die(faults, dice)
        answer = wrapped(*args, **kwargs)
        if when == "after":
            _die(faults, dice)
        return answer

    return wrapper


def _die(faults: dict[str, Any], dice: random.Random) -> None:
    if dice.random() < faults["share"] and _is_next(faults):
        if faults.get("how") == "hang":
            # As in code of C, which no exception ends.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(600)
        if faults.get("how") == "soft limit":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif exception := getattr(builtins, faults.get("how", ""), None):
            raise exception("from outside")
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def _is_next(faults: dict[str, Any]) -> bool:
    """Tell whether fewer processes than are to die have died, and count this one."""
    folder = Path(faults["folder"])
    for number in range(faults["most"]):
        try:
            (folder / f"died-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False
