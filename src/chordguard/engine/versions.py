"""Which Celery, and which drivers, are installed, and where their behaviour changed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from functools import cache

__all__ = ("celery_version",)


Version = tuple[int, ...]

#: The generator header's `zip` is gone: https://github.com/celery/celery/pull/7964
celery_5_3: Version = (5, 3)
#: Errbacks that are data are linked to groups, too (`celery.canvas.group.link_error`).
celery_5_4: Version = (5, 4)
#: The database backend creates its tables at set-up:
#: https://docs.celeryq.dev/en/stable/userguide/configuration.html
celery_5_5: Version = (5, 5)
#: A group that is a body is failed member by member: https://github.com/celery/celery/pull/9773
celery_5_6: Version = (5, 6)
#: Nested groups have ids of their own, failures reach chord steps of a chain, `chord_unlock`
#: fails a chord that it can no longer poll: https://docs.celeryq.dev/en/latest/changelog.html
celery_5_7: Version = (5, 7)

#: Versions on which the whole suite, or the conformance table, passes.
TESTED_VERSIONS = ("5.2.7", "5.3.6", "5.4.0", "5.5.3", "5.6.3", "5.7.0")


@cache
def celery_version() -> Version:
    """Return the installed Celery's version as numbers: ``5.7.0rc1`` is ``(5, 7, 0)``."""
    from celery import VERSION

    return (
        int(VERSION.major),
        int(VERSION.minor),
        int("".join(character for character in str(VERSION.micro) if character.isdigit()) or 0),
    )


def installed_version(package: str) -> str:
    """Return the version of an installed package as text, also where it does not tell one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


@cache
def driver_version(package: str) -> Version:
    """Return the version of an installed package as numbers; none where it is not known."""
    numbers = re.match(r"[\d.]*\d", installed_version(package))
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def lies_in(version: Version, since: Version | None, until: Version | None) -> bool:
    """Tell whether `version` is `since` or later, and earlier than `until`."""
    return (since or version) <= version < (until or (sys.maxsize,))
