"""Who has died is told: children of a pool, and other workers of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from chordguard.ledger import claims
from chordguard.recovery import processes
from tests.harness import ROOT, wait_until

#: A worker that has a child, which goes on without it.
WORKER = """
import os, sys, time
from chordguard.ledger import claims
from chordguard.recovery import processes
processes.be_worker()
child = os.fork()
if child:
    print(claims.owner, child, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Use a folder that no other worker of this machine uses."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"chordguard-{os.getuid()}"


@pytest.fixture
def start_worker(tmp_path):
    """Return a function that starts a worker; it returns owner, process, and the child's id."""
    with contextlib.ExitStack() as stack:

        def start():
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(tmp_path)},
            )
            stack.callback(process.stdout.close)
            stack.callback(kill_all, process)
            owner, child = process.stdout.readline().split()
            return owner, process, int(child)

        yield start


def start_child():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def kill(child):
    child.kill()
    child.communicate()


def kill_all(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Claims:
    """The claims of a ledger, and how often it was asked for them."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)
        self.asked = 0

    def expire(self, is_gone):
        self.asked += 1
        before = len(self.tokens)
        self.tokens = [token for token in self.tokens if not is_gone(token)]
        return before - len(self.tokens)


def token_of(owner, process=0):
    return f"{owner}{claims.process_mark(process)}".ljust(36, "0")


class TestChildren:
    @pytest.fixture
    def pool(self):
        """A pool of two, as Celery keeps it: a list that has those that live."""
        children = [start_child() for _ in range(2)]
        yield SimpleNamespace(_pool=SimpleNamespace(_pool=children))
        for child in children:
            kill(child)

    def kill_one(self, pool):
        """Kill a child and replace it; return its id."""
        children = pool._pool._pool
        kill(children[0])
        dead, children[0] = children[0].pid, start_child()
        return dead

    def test_claims_of_one_that_died_end(self, pool):
        deaths = processes.Deaths(pool)
        deaths.look()
        dead = self.kill_one(pool)
        living = [token_of(claims.owner, process.pid) for process in pool._pool._pool]
        kept = [*living, token_of(claims.owner), token_of("somebodyelse", dead)]
        held = Claims(token_of(claims.owner, dead), *kept)

        assert 1 == deaths.expire_claims(held.expire)
        assert kept == held.tokens

    def test_one_whose_death_the_pool_has_not_seen_yet(self, pool):
        deaths = processes.Deaths(pool)
        deaths.look()
        child = pool._pool._pool[0]
        held = Claims(token_of(claims.owner, child.pid))
        child.kill()

        wait_until(lambda: deaths.expire_claims(held.expire), what="an end of the claim")
        assert child.returncode is None
        assert -signal.SIGKILL == child.wait()

    def test_ledger_is_asked_only_after_a_death(self, pool):
        deaths, held = processes.Deaths(pool), Claims()
        for _ in range(3):
            deaths.expire_claims(held.expire)
        assert 0 == held.asked

        self.kill_one(pool)
        for _ in range(5):
            deaths.expire_claims(held.expire)
        assert processes.LOOKS == held.asked

    def test_ledger_that_cannot_be_asked_is_asked_later(self, pool):
        deaths = processes.Deaths(pool)
        deaths.look()
        held = Claims(token_of(claims.owner, self.kill_one(pool)))

        with pytest.raises(ConnectionError):
            deaths.expire_claims(lambda _: (_ for _ in ()).throw(ConnectionError()))
        assert 1 == deaths.expire_claims(held.expire)

    @pytest.mark.parametrize("pool", [None, object()], ids=["none", "without processes"])
    def test_pool_without_processes_has_none_that_die(self, pool):
        deaths, held = processes.Deaths(pool), Claims(token_of(claims.owner, 1))
        deaths._looks = 1

        assert 0 == deaths.expire_claims(held.expire)


class TestWorkers:
    def test_claims_of_one_that_died_end(self, start_worker):
        owner, process, child = start_worker()
        living, *_ = start_worker()
        kept = [token_of(living), token_of("anothermachi"), token_of(claims.owner)]
        deaths, held = processes.Deaths(), Claims(token_of(owner, child), token_of(owner), *kept)
        deaths.expire_claims(held.expire)
        assert 0 == held.asked

        kill_all(process)

        wait_until(lambda: deaths.expire_claims(held.expire) == 2, what="an end of the claims")
        assert kept == held.tokens

    def test_one_whose_child_lives_is_not_dead(self, start_worker):
        owner, process, child = start_worker()
        deaths, held = processes.Deaths(), Claims(token_of(owner, child))
        process.kill()
        process.wait()
        for _ in range(3):
            assert 0 == deaths.expire_claims(held.expire)

        os.kill(child, signal.SIGKILL)

        wait_until(lambda: deaths.expire_claims(held.expire), what="an end of the claim")

    def test_file_of_one_that_died_is_removed_later(self, start_worker, folder, monkeypatch):
        owner, process, _ = start_worker()
        kill_all(process)
        deaths = processes.Deaths()
        wait_until(lambda: deaths.look() or deaths._workers, what="a death")
        deaths.look()
        assert (folder / owner).exists()

        monkeypatch.setattr(processes, "KEPT_SECONDS", -1.0)
        deaths.look()

        assert not (folder / owner).exists()

    def test_folder_that_others_may_write_to_is_not_used(self, start_worker, folder):
        owner, process, _ = start_worker()
        kill_all(process)
        wait_until(lambda: processes._has_died(folder / owner), what="a death")
        folder.chmod(0o777)
        deaths, held = processes.Deaths(), Claims()

        deaths.expire_claims(held.expire)

        assert 0 == held.asked


class TestBeingAWorker:
    @pytest.fixture(autouse=True)
    def new_process(self, monkeypatch):
        """Let this process be no worker yet."""
        monkeypatch.setattr(processes, "_worker", (0, None))
        monkeypatch.setattr(claims, "owner", claims.owner)
        yield
        if processes._worker[1] is not None:
            os.close(processes._worker[1])

    def test_workers_of_one_process_share_an_owner(self, folder):
        processes.be_worker()
        owner = claims.owner
        processes.be_worker()

        assert owner == claims.owner
        assert [folder / owner] == list(folder.iterdir())

    def test_one_that_ends_leaves_no_file(self, folder):
        processes.be_worker()

        processes.forget_worker()

        assert [] == list(folder.iterdir())

    def test_one_that_cannot_write_a_file_is_told_of(self, folder, caplog):
        caplog.set_level("INFO", "chordguard")
        folder.parent.joinpath(folder.name).symlink_to(folder.parent)

        processes.be_worker()

        assert "is not this user's alone" in caplog.text
        assert processes._worker == (os.getpid(), None)
