"""Each folder of examples/ works as its README says."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tests.docs.pages import blocks
from tests.docs.walk import walking
from tests.harness import ROOT
from tests.servers import free_port

EXAMPLES = ROOT / "examples"

#: What each folder needs beside chordguard, by the names of modules.
NEEDED = {
    "django": ("django", "django_celery_results"),
    "fastapi": ("fastapi", "uvicorn"),
    "flask": ("flask",),
    "postgresql": ("psycopg2", "sqlalchemy"),
    "redis": ("redis",),
}


def test_every_folder_has_a_test():
    folders = {path.name for path in EXAMPLES.iterdir() if (path / "README.md").exists()}

    assert set(NEEDED) == folders


@pytest.mark.nightly
@pytest.mark.parametrize("name", NEEDED)
def test_example_works_as_its_readme_says(name, tmp_path, own_redis, here, request):
    missing = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    ports = {"8000": str(free_port()), "5000": str(free_port())}
    instead = {f"127.0.0.1:{shown}": f"127.0.0.1:{port}" for shown, port in ports.items()}
    instead["redis://localhost"] = own_redis
    if name == "postgresql":
        instead["postgresql+psycopg2://postgres@localhost/proj"] = request.getfixturevalue(
            "database"
        )
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for shown, real in instead.items():
            text = text.replace(shown, real)
        path.write_text(text)
    env = {**here, "UVICORN_PORT": ports["8000"], "FLASK_RUN_PORT": ports["5000"]}
    text = (folder / "README.md").read_text(encoding="utf-8")

    with walking(folder, instead, env, is_installed=True) as walk:
        walk.follow(text)

    assert len(walk.done) == text.count("\n$ ") >= 3
    assert blocks(text, "console")
