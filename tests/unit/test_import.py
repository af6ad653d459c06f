from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import chordguard
from chordguard import aio, metrics, signals
from tests.harness import ROOT

#: Milliseconds that it may add to an `import celery`.
MOST = 20.0
RUNS = 5

MEASURE = """
import json, sys, time
import celery
celery.Celery
before, start = set(sys.modules), time.perf_counter()
import chordguard
seconds = time.perf_counter() - start
print(json.dumps([seconds * 1000, sorted(set(sys.modules) - before)]))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


def test_import_brings_no_package_along():
    _, modules = json.loads(run(MEASURE))

    assert {"chordguard"} >= {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def test_import_costs_next_to_nothing():
    assert min(json.loads(run(MEASURE))[0] for _ in range(RUNS)) < MOST


def test_installing_imports_no_driver():
    code = """
import sys
from celery import Celery
from chordguard import install_patches
install_patches(Celery("app"))
assert not {"redis", "sqlalchemy"} & set(sys.modules), "a driver was imported"
"""
    run(code)


def test_process_that_starts_chords_imports_no_watchdog():
    code = """
import sys
from celery import Celery, chord
from chordguard import install_patches
app = Celery("app", broker="memory://", backend="db+sqlite://")
install_patches(app)
app.finalize()


@app.task
def echo(value):
    return value


chord([echo.s(1), echo.s(2)], echo.s()).apply_async()
assert not {"chordguard.recovery.watchdog", "chordguard.recovery.processes"} & set(sys.modules)
"""
    run(code)


def test_awaiting_is_imported_when_it_is_asked_for():
    code = """
import sys
from celery import Celery
import chordguard
from chordguard import install_patches, progress
install_patches(Celery("app", backend="redis://"))
assert "chordguard.aio" not in sys.modules
"""
    run(code)


def test_every_public_name_is_there():
    assert set(chordguard.__all__) <= set(dir(chordguard))
    for name in chordguard.__all__:
        assert getattr(chordguard, name).__doc__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        chordguard.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", [chordguard, aio, metrics, signals], ids=lambda m: m.__name__)
def test_every_public_name_is_used_where_the_types_are_checked(module):
    used = (ROOT / "tests" / "typing" / "api.py").read_text(encoding="utf-8")

    # The import alone is no use.
    assert set() == {name for name in module.__all__ if len(re.findall(rf"\b{name}\b", used)) < 2}
