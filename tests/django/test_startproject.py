"""A project made with `startproject`, in which the pages are followed literally."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from celery.utils import uuid

from tests.harness import ROOT, delete_keys, wait_until

pytestmark = [pytest.mark.alone, pytest.mark.newest]

START, DJANGO = (
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("start.md", "django.md")
)

TASKS = """
from celery import shared_task


@shared_task
def divide(a, b):
    return a / b


@shared_task
def collect(results):
    return results
"""

STUCK = """
import time
from celery.utils import uuid
from chordguard.ledger.access import required_ledger
from chordguard.ledger.model import Part
from chordguard.ledger.packing import pack_data
from proj.celery import app
from proj.tasks import collect, divide

ledger = required_ledger(app)
members = [divide.delay(n, 1) for n in (1, 2)]
for member in members:
    member.get(timeout=30)
body = collect.s().set(task_id=uuid())
group_id = uuid()
ledger.open(
    group_id, [member.id for member in members], pack_data(app, body), time.time() + 3600, None
)
ledger.count(group_id, Part(members[0].id))
ledger._chord(group_id).update(progressed=time.time() - 4000, created=time.time() - 7200)
"""

ADMIN = (
    STUCK
    + """
from django.contrib.auth.models import Permission, User
from django.test import Client
from chordguard.django.models import LiveChord

root = User.objects.create_superuser("root", "", "secret")
looker = User.objects.create_user("looker", "", "secret", is_staff=True)
looker.user_permissions.add(Permission.objects.get(codename="view_livechord"))
url = "/admin/chordguard/livechord/"
for user, actions in ((looker, False), (root, True)):
    client = Client(SERVER_NAME="localhost")
    client.force_login(user)
    page = client.get(url).content.decode()
    assert group_id in page and "1 of 2" in page and "part-lost" in page, page
    assert ("repair_chords" in page) is actions
    one = client.get(f"{url}{group_id}/change/").content.decode()
    assert "1 more have a result that was not counted" in one
    for query in ("?age=1", "?state=quiet", f"?q={group_id}"):
        assert group_id in client.get(url + query).content.decode(), query
    for query in ("?age=24", "?state=failed", "?state=ending", "?state=complete", "?q=nothing"):
        assert group_id not in client.get(url + query).content.decode(), query

act = {"action": "repair_chords", "_selected_action": [group_id]}
looking = Client(SERVER_NAME="localhost")
looking.force_login(looker)
looking.post(url, act)
assert LiveChord.objects.filter(pk=group_id).exists()
answer = client.post(url, act, follow=True).content.decode()
assert "recount done" in answer, answer
print(app.AsyncResult(body.id).get(timeout=30))

for action in ("settle_chords", "revoke_chords"):
"""
    + "".join(f"    {line}\n" for line in STUCK.splitlines())
    + """
    act = {"action": action, "_selected_action": [group_id]}
    answer = client.post(url, act, follow=True).content.decode()
    assert f"{action.partition('_')[0]} done" in answer, answer
    assert not LiveChord.objects.filter(pk=group_id).exists()
"""
)

CHECKS = """
from django.conf import settings
from django.db import connections
from django.test.utils import override_settings
from celery import _state
from chordguard import install_patches, uninstall_patches
from chordguard.django.checks import check_project, check_tables
from proj.celery import app


class Separating:
    def db_for_write(self, model, **_):
        return "other" if model._meta.app_label == "chordguard" else "default"


def ids(found=None):
    return [each.id.partition(".")[2] for each in (check_project() if found is None else found)]


assert [] == ids()
with override_settings(DATABASE_ROUTERS=[Separating()]):
    assert ["W004"] == ids()
connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
assert ["I001"] == ids()
connections["default"].settings_dict["ATOMIC_REQUESTS"] = False
app.conf.result_expires = 60
assert ["W005"] == ids()
app.conf.result_expires = 86400
app.backend_cls = "cache+memory://"
assert ["W003"] == ids()
app.backend_cls = None
uninstall_patches(app)
assert ["W002"] == ids()
install_patches(app)
_state._tls.current_app = _state.default_app = None
assert ["W001"] == ids()
print("checked")
"""


def code_of(page, language, first=""):
    """Return the first block of code of a page that has `first`."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return next(block for block in found if first in block)


class Project:
    def __init__(self, folder, broker):
        self.folder = folder
        self.name = f"cg-{uuid()}"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DJANGO")},
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), *sys.path]),
            "DJANGO_SETTINGS_MODULE": "proj.settings",
        }
        self.run("-m", "django", "startproject", "proj", ".", env=os.environ)
        self.write("celery.py", code_of(START, "python", "# proj/celery.py"))
        self.write("__init__.py", "from .celery import app as celery_app\n")
        self.write("tasks.py", TASKS)
        settings = code_of(DJANGO, "python", "INSTALLED_APPS")
        self.write(
            "settings.py",
            (folder / "proj/settings.py").read_text()
            + settings
            + 'INSTALLED_APPS += ["proj"]\n'
            + "CELERY_CHORD_PROPAGATE_ERRORS = False\n"
            + f"CELERY_BROKER_URL = {broker!r}\n"
            + f'CELERY_BROKER_TRANSPORT_OPTIONS = {{"global_keyprefix": "{self.name}:"}}\n'
            + f"CELERY_TASK_DEFAULT_QUEUE = {self.name!r}\n"
            + 'DATABASES["default"]["OPTIONS"] = {"timeout": 20}\n',
        )

    def write(self, name, text):
        (self.folder / "proj" / name).write_text(text)

    def run(self, *arguments, env=None, code=0):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=env or self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    def manage(self, *arguments, code=0):
        return self.run("manage.py", *arguments, code=code)

    def script(self, text):
        path = self.folder / f"script_{uuid()[:8]}.py"
        path.write_text(f"import django\ndjango.setup()\n{text}")
        return self.run(str(path))


@pytest.fixture
def project(servers, require, tmp_path):
    require("redis")
    pytest.importorskip("django")
    pytest.importorskip("django_celery_results")
    url = servers.get("redis").url
    made = Project(tmp_path, url)
    yield made
    delete_keys(url, f"{made.name}:*")


@pytest.fixture
def worker(project):
    log = project.folder / "worker.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "proj", "worker", "-l", "INFO", "-c", "2"],
            cwd=project.folder,
            env=project.env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    project.log = log
    yield process
    process.terminate()
    process.wait(30)


def wait_until_ready(project):
    wait_until(lambda: " ready." in project.log.read_text(), what="worker", timeout=60)


class TestMigrated:
    @pytest.fixture(autouse=True)
    def migrated(self, project):
        commands = code_of(DJANGO, "console", "migrate").splitlines()
        for command in commands:
            assert command.startswith("$ python manage.py ")
        assert "chordguard.W006" in project.manage("check", "--database", "default")
        for command in commands:
            answer = project.manage(*command.split()[3:])
        assert "no issues" in answer

    def test_chord_with_a_failing_member_ends(self, project, worker):
        wait_until_ready(project)
        answer = project.script(
            "from celery import chord\n"
            "from proj.tasks import collect, divide\n"
            "print(chord([divide.s(6, 3), divide.s(6, 0)], collect.s()).delay().get(timeout=30))\n"
        )

        assert "[2.0, 'ZeroDivisionError: division by zero']" in answer
        assert "INSTALLED_APPS" not in project.log.read_text()
        assert "live chords  0" in project.manage("chords", "status")
        assert [] == json.loads(project.manage("chords", "list", "--json"))["chords"]

    @pytest.mark.nightly
    def test_admin_shows_chords_and_repairs_them(self, project, worker):
        wait_until_ready(project)

        assert "[1.0, 2.0]" in project.script(ADMIN)

    @pytest.mark.nightly
    def test_checks(self, project):
        assert "no issues" in project.manage("check")
        assert "checked" in project.script(CHECKS)

    @pytest.mark.nightly
    def test_migrations(self, project):
        assert "No changes" in project.manage("makemigrations", "--check", "--dry-run")
        project.manage("migrate", "chordguard", "zero")
        project.manage("migrate")


@pytest.mark.nightly
def test_without_the_app_the_worker_says_what_is_missing(project, worker):
    settings = project.folder / "proj/settings.py"
    worker.terminate()
    worker.wait(30)
    settings.write_text(settings.read_text().replace(', "chordguard.django"', ""))
    project.manage("migrate")
    with project.log.open("w") as output:
        other = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", "2"],
            cwd=project.folder,
            env=project.env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        missing = "chordguard.django is not in INSTALLED_APPS"
        wait_until(lambda: missing in project.log.read_text(), what="a warning", timeout=60)
        answer = project.script(
            "from celery import chord\n"
            "from chordguard import patch_report\n"
            "from proj.celery import app\n"
            "from proj.tasks import collect, divide\n"
            "print(chord([divide.s(6, 3), divide.s(6, 0)], collect.s()).delay().get(timeout=30))\n"
            "print(patch_report(app))\n"
        )
    finally:
        other.terminate()
        other.wait(30)

    assert "[2.0, 'ZeroDivisionError: division by zero']" in answer
    assert missing in answer
    assert 1 == project.log.read_text().count(missing)
