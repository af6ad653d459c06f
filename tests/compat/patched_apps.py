"""A pytest plugin: every Celery app that a test makes has the patches.

With it Celery's own test-suite runs as an application that installed chordguard and left
all settings at their defaults, but for the patches named in CHORDGUARD_COMPAT_OFF, which are off.
"""

from __future__ import annotations

import os
from typing import Any

import wrapt
from celery import Celery

from chordguard import install_patches


@wrapt.patch_function_wrapper(Celery, "__init__")
def make_app(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    off = os.environ.get("CHORDGUARD_COMPAT_OFF", "").split()
    instance.add_defaults({f"chord_fix_{name}": False for name in off})
    install_patches(instance)
