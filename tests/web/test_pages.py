"""What the pages show of real chords, and that what cannot be read is never shown as well."""

from __future__ import annotations

import re
import time
from html import escape
from urllib.parse import quote

import pytest
from celery import chord, states
from kombu.utils.uuid import uuid

from chordguard import tolerant
from chordguard.ledger.packing import pack_data
from tests.app_factory import make_app
from tests.chords import stuck
from tests.cli.calls import BOTH
from tests.harness import wait_until
from tests.servers import free_port
from tests.web.browsing import CLUSTER, Browser, browser_of, listed, verdict

pytestmark = CLUSTER


@pytest.fixture
def browser(cluster):
    with browser_of(cluster.app) as found:
        yield found


def open_chords(cluster, count, name="echo", size=2):
    """Open chords of which no member is sent; return their ids, the oldest first."""
    ledger, ids = stuck.ledger_of(cluster), []
    body = getattr(cluster.tasks, name).s()
    for _ in range(count):
        ids.append(uuid())
        packed = pack_data(cluster.app, body.clone().set(task_id=uuid()))
        ledger.open(ids[-1], [uuid() for _ in range(size)], packed, time.time() + 600, 3600.0)
        if cluster.stack.backend == "redis":
            ledger.set_size(ids[-1], size)
    return ids


@BOTH
def test_chord_that_runs_is_on_its_way(cluster, gate, browser):
    group_id = stuck.waiting_chord(cluster, gate).parent.id

    text = browser.checked()

    assert ("good", "All is well: 1 live chord is on its way") == verdict(text)
    assert [group_id] == listed(text)
    assert "1 of 2 members done" in text
    page = browser.get(f"/chords/{group_id}")
    assert ("good", "On its way") == verdict(page)
    assert "SUCCESS" in page
    assert f"runs on {cluster.worker.hostname}" in page


def test_empty_ledger_is_well(cluster, browser):
    assert ("good", "No live chords") == verdict(browser.checked())
    assert "Nothing needs you." in browser.get("/attention")


@BOTH
@pytest.mark.parametrize(
    "kind",
    [
        "member-lost",
        "part-lost",
        pytest.param("ready-not-fired", marks=pytest.mark.nightly),
        pytest.param("claim-expired", marks=pytest.mark.nightly),
    ],
)
def test_stuck_chord_is_shown_with_what_a_repair_would_do(cluster, gate, browser, kind):
    way, _ = stuck.WAYS[kind]
    group_id = way(cluster, gate).parent.id

    text = browser.checked("/attention")

    assert ("bad", "1 of 1 live chord needs attention") == verdict(text)
    assert kind in text
    assert "A repair would" in text
    page = browser.get(f"/chords/{group_id}")
    assert "bad" == verdict(page)[0]
    assert f"celery -A … chords repair {group_id}" in page
    # It only shows.
    assert "<form method" not in page


def test_before_the_first_look_nothing_is_well(cluster, gate, monkeypatch):
    stuck.waiting_chord(cluster, gate)
    monkeypatch.setattr("chordguard.web.watch.Watch.look_soon", lambda self: None)

    with browser_of(cluster.app) as browser:
        text = browser.get("/")

    assert "waiting" == verdict(text)[0]
    assert "well" not in verdict(text)[1]
    assert 1 == len(listed(text))


def app_with(cluster, **settings):
    config = {**cluster.config, "settings": {**cluster.config["settings"], **settings}}
    return make_app(config, patched=True)


def test_without_a_worker_nothing_is_well(cluster, gate):
    stuck.waiting_chord(cluster, gate)
    app = app_with(cluster, control_exchange=f"{cluster.stack.name}-nobody")

    with browser_of(app) as browser:
        text = browser.checked()

    assert ("doubtful", "Cannot tell") == verdict(text)
    assert "no worker answered" in text
    assert 1 == len(listed(text))


@pytest.mark.parametrize("setting", ["result_backend", "broker_url"])
def test_server_that_is_away_is_told_without_its_password(cluster, setting):
    url = f"redis://user:not-for-anybody@127.0.0.1:{free_port()}//"
    with browser_of(app_with(cluster, **{setting: url})) as browser:
        pages = [browser.checked(path) for path in ("/", "/attention")]
        if setting == "result_backend":
            pages.append(browser.get("/chords/any"))

    for text in pages:
        assert ("doubtful", "Cannot tell") == verdict(text)
        assert "127.0.0.1" in text
        assert "not-for-anybody" not in text


def test_old_look_says_nothing_any_more(cluster, browser, monkeypatch):
    browser.checked()
    monkeypatch.setattr("chordguard.web.watch.Watch.look_soon", lambda self: None)
    monkeypatch.setattr("chordguard.web.watch.LOOK_EVERY", 0.01)
    monkeypatch.setattr("chordguard.web.watch.LOOK_TIMES", 0)
    monkeypatch.setattr("chordguard.web.watch.PERIODS", 0)

    wait_until(lambda: verdict(browser.get("/"))[0] == "doubtful", what="doubt")


@BOTH
def test_list_is_filtered_sorted_and_paged(cluster, browser, monkeypatch):
    monkeypatch.setattr("chordguard.web.listing.ON_A_PAGE", 2)
    echo = open_chords(cluster, 3, "echo")
    add = open_chords(cluster, 1, "add", size=3)
    browser.checked()

    assert echo[:2] == listed(browser.get("/"))
    assert [echo[2], *add] == listed(browser.get("/?page=2"))
    assert [echo[2], *add] == listed(browser.get("/?page=999"))
    assert [*add, echo[2]] == listed(browser.get("/?order=newest"))
    assert add[0] == listed(browser.get("/?order=largest"))[0]
    assert add == listed(browser.get("/?q=*.add"))
    assert add == listed(browser.get(f"/?q={add[0][:8]}"))
    assert [] == listed(browser.get("/?age=1d"))
    assert [] == listed(browser.get("/?diagnosis=body-done"))
    assert 2 == len(listed(browser.get("/?order=nonsense&age=nonsense&page=-1&diagnosis=x")))


def test_members_come_in_header_order_a_page_at_a_time(cluster, browser):
    (group_id,) = open_chords(cluster, 1, size=230)
    ids = list(stuck.ledger_of(cluster).read(group_id).header)

    for page, expected in ((1, ids[:100]), (3, ids[200:]), (9, ids[200:])):
        text = browser.get(f"/chords/{group_id}?page={page}")
        table = text[text.index("members-title") :]
        assert expected == re.findall(r'<span class="id">([0-9a-f-]{36})</span>', table)


def test_nested_chord_is_drawn_and_not_lost(cluster, gate, browser):
    t = cluster.tasks
    inner = chord([t.wait_for_file.s(gate.path, 1), t.echo.s(2)], t.tsum.s())
    result = chord([inner, t.echo.s(3)], t.collect.s()).apply_async()
    group_id = result.parent.id
    ledger = stuck.ledger_of(cluster)
    wait_until(lambda: ledger.read(group_id).returned == 1, what="a part")

    text = browser.checked()

    assert ("good", "All is well: 2 live chords are on their way") == verdict(text)
    (other,) = {*listed(text)} - {group_id}
    assert f'href="/chords/{other}">a chord itself' in browser.get(f"/chords/{group_id}")
    assert f'href="/chords/{group_id}"' in browser.get(f"/chords/{other}")
    gate.open()
    assert [3, 3] == cluster.run(result)


def test_chord_that_has_ended_is_told_with_its_result(cluster, gate, browser):
    result = stuck.waiting_chord(cluster, gate)
    group_id = result.parent.id
    assert "On its way" in browser.get(f"/chords/{group_id}")
    gate.open()
    assert [1, 2] == cluster.run(result)

    wait_until(lambda: "It has ended" in browser.get(f"/chords/{group_id}"), what="the end")
    assert "SUCCESS" in browser.get(f"/chords/{group_id}")


def test_unknown_chord_is_not_found(cluster, browser):
    assert "Not in the ledger" in browser.get("/chords/no-such-chord", status=404)
    assert "There is no such page" in browser.get("/no-such-page", status=404)


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e" + "A" * 10_000_000


def test_hostile_errors_and_ids_are_harmless(cluster, gate, browser):
    t = cluster.tasks
    header = [t.wait_for_file.s(gate.path), t.echo.s(1), t.echo.s(2)]
    result = tolerant(chord(header, t.collect.s())).apply_async()
    group_id, members = result.parent.id, result.parent.results
    wait_until(lambda: stuck.ledger_of(cluster).read(group_id).returned == 2, what="the parts")
    cluster.app.backend.store_result(members[1].id, ValueError(HOSTILE), states.FAILURE)
    cluster.app.backend.store_result(members[0].id, HOSTILE, "<b>STATE")

    evil = HOSTILE[:50]
    ledger = stuck.ledger_of(cluster)
    body = cluster.app.signature("<img src=x onerror=alert(1)>\x1b]0;", task_id=uuid())
    ledger.open(evil, [f"<b>{uuid()}"], pack_data(cluster.app, body), time.time() + 600, 600.0)
    pages = [browser.checked(), browser.get(f"/chords/{group_id}")]
    pages.append(browser.get(f"/?q={quote(evil)}"))
    pages.append(browser.get(f"/chords/{quote(evil, safe='')}"))

    assert evil in listed(pages[0])
    assert "&lt;img src=x" in pages[3]
    for text in pages:
        assert len(text) < 100_000
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<b>" not in text
        assert not re.search("[\x00-\x08\x0e-\x1f\u202e]", text.replace(escape(evil), ""))
        # Nothing inline, which the policy would refuse.
        assert not re.search(r"<[^>]+ (style|on\w+)=", text)


def test_every_answer_has_the_headers(cluster, browser):
    for path in ("/", "/attention", "/chords/x", "/sign-in", "/no-such-page"):
        headers = browser.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "nosniff" == headers["x-content-type-options"]
        assert "no-store" == headers["cache-control"]


def test_everything_it_needs_comes_from_itself(cluster, browser):
    text = browser.get("/")

    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert address.startswith(("/", "#")), address
    for address in re.findall(r'"(/static/[^"]+)"', text):
        assert browser.get(address)
    assert browser.get("/static/x/../../secret", status=404)


def test_looking_reads_no_more_of_many_chords_than_of_a_page(cluster, browser, monkeypatch):
    ids = open_chords(cluster, 120)
    browser.checked()
    asked = []
    ledger_class = type(stuck.ledger_of(cluster))
    read_all = ledger_class.read_all
    monkeypatch.setattr(
        ledger_class, "read_all", lambda self, ids: asked.append(len(ids)) or read_all(self, ids)
    )
    monkeypatch.setattr("chordguard.web.watch.Watch.look_soon", lambda self: None)

    assert ids[:50] == listed(browser.get("/"))

    assert asked
    assert max(asked) <= 50


def test_page_mounted_elsewhere_leads_to_itself(cluster, gate):
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    from chordguard.web import create_app

    group_id = stuck.waiting_chord(cluster, gate).parent.id
    outer = Starlette(routes=[Mount("/ops/chords", create_app(cluster.app))])
    with TestClient(outer, base_url="http://localhost") as client:
        browser = Browser(client)
        text = browser.get("/ops/chords/")
        addresses = re.findall(r'(?:src|href|action)="(/[^"]*)"', text)
        assert all(address.startswith("/ops/chords/") for address in addresses), addresses
        assert browser.get(next(a for a in addresses if "page.css" in a))
        assert "On its way" in browser.get(f"/ops/chords/chords/{group_id}")
