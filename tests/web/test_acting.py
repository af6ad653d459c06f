"""Who may act, and what acting does."""

from __future__ import annotations

import logging

import pytest
from celery import states

from chordguard.web import create_app
from tests.chords import stuck
from tests.cli.calls import BOTH
from tests.harness import wait_until
from tests.web.browsing import CLUSTER, TOKEN, browser_of, verdict

pytestmark = CLUSTER


@pytest.fixture
def browser(cluster):
    with browser_of(cluster.app, allow_actions=True, token=TOKEN) as found:
        yield found


def returned(cluster, group_id):
    record = stuck.ledger_of(cluster).read(group_id)
    return None if record is None else record.returned


@BOTH
def test_stuck_chord_is_repaired_and_it_is_logged(cluster, gate, browser, caplog):
    result = stuck.part_lost(cluster, gate)
    group_id = result.parent.id
    assert 303 == browser.sign_in()
    page = browser.checked(f"/chords/{group_id}")
    assert "Repair it" in page

    done = browser.act(group_id, "repair", shown="recount")

    assert (303, f"/chords/{group_id}#acts") == (done.status_code, done.headers["location"])
    assert [1, 2] == cluster.run(result)
    text = browser.get(f"/chords/{group_id}")
    assert "done: count the members whose results are stored" in text
    lines = [r.getMessage() for r in caplog.records if r.name == "chordguard"]
    assert [1] == [line.count("repair of chord") for line in lines if "Asked on the page" in line]
    wait_until(lambda: verdict(browser.get("/"))[0] == "good", what="all well")


@pytest.mark.parametrize("act", ["settle", "revoke"])
def test_chord_is_given_up(cluster, gate, browser, act):
    result = stuck.waiting_chord(cluster, gate)
    group_id = result.parent.id
    assert 303 == browser.sign_in()

    assert 303 == browser.act(group_id, act).status_code

    wait_until(lambda: result.state == states.FAILURE, what="the failure")
    assert returned(cluster, group_id) is None
    second = result.parent.results[1]
    if act == "revoke":
        wait_until(lambda: second.state == states.REVOKED, what="the revoked member")
    assert "settled it" in browser.get(f"/chords/{group_id}")


def test_another_repair_than_the_one_shown_is_not_done(cluster, gate, browser):
    group_id = stuck.part_lost(cluster, gate).parent.id
    browser.sign_in()

    browser.act(group_id, "repair", shown="fail-members")

    assert 1 == returned(cluster, group_id)
    assert "not done, it has changed" in browser.get(f"/chords/{group_id}")


def test_what_cannot_be_told_is_not_repaired(cluster, gate, browser):
    group_id = stuck.part_lost(cluster, gate).parent.id
    browser.sign_in()
    cluster.app.conf.broker_url = "redis://127.0.0.1:1//"
    cluster.app.conf.broker_write_url = "redis://127.0.0.1:1//"
    try:
        assert 303 == browser.act(group_id, "repair", shown="recount").status_code
    finally:
        cluster.app.conf.broker_url = cluster.config["settings"]["broker_url"]
        cluster.app.conf.broker_write_url = cluster.config["settings"]["broker_url"]

    assert 1 == returned(cluster, group_id)
    assert "not done: the broker" in browser.get(f"/chords/{group_id}")


def test_unknown_chord_cannot_be_acted_on(cluster, browser):
    browser.sign_in()

    browser.act("no-such-chord", "settle")

    text = browser.get("/chords/no-such-chord", status=404)
    assert "not done: the ledger does not know it" in text


def test_acting_is_refused_unless_it_is_allowed(cluster, gate):
    group_id = stuck.part_lost(cluster, gate).parent.id
    with browser_of(cluster.app) as browser:
        assert 403 == browser.act(group_id, "repair", key="", shown="recount").status_code
        # There is no token to sign in with.
        assert 403 == browser.sign_in("")
        assert 403 == browser.act(group_id, "settle", key="").status_code

    assert 1 == returned(cluster, group_id)


def test_acting_is_refused_without_the_token(cluster, gate, browser, caplog):
    group_id = stuck.part_lost(cluster, gate).parent.id

    assert 403 == browser.sign_in("not-the-token")
    assert 403 == browser.act(group_id, "repair", shown="recount").status_code
    browser.client.cookies.set("chordguard_session", "1999999999.x." + "0" * 64)
    assert 403 == browser.act(group_id, "repair", shown="recount").status_code

    assert 1 == returned(cluster, group_id)
    assert "wrong token" in caplog.text
    assert TOKEN not in caplog.text


def test_form_of_another_site_is_refused(cluster, gate, browser):
    group_id = stuck.part_lost(cluster, gate).parent.id
    browser.sign_in()

    without_key = browser.act(group_id, "repair", key="", shown="recount")
    elsewhere = {"Origin": "http://evil.example"}
    with_origin = browser.act(group_id, "repair", shown="recount", headers=elsewhere)

    assert [403, 403] == [without_key.status_code, with_origin.status_code]
    assert 1 == returned(cluster, group_id)


def test_unknown_act_and_large_form_are_refused(cluster, gate, browser):
    group_id = stuck.part_lost(cluster, gate).parent.id
    browser.sign_in()

    assert 400 == browser.act(group_id, "purge").status_code
    assert 413 == browser.act(group_id, "repair", shown="x" * 10_000).status_code


def test_signing_out_ends_the_session(cluster, browser):
    browser.sign_in()
    assert "Sign out" in browser.get("/")
    key = browser.get("/").split('name="key" value="')[1].split('"')[0]

    browser.client.post("/sign-out", data={"key": key})

    assert "Sign out" not in browser.get("/")


def test_session_ends_after_its_time(cluster, browser, monkeypatch):
    browser.sign_in()
    monkeypatch.setattr("chordguard.web.guard.SESSION_SECONDS", 0)

    assert "Sign out" not in browser.get("/")


def test_cookie_is_for_this_page_alone(cluster, browser):
    answer = browser.client.post("/sign-in", data={"token": TOKEN}, follow_redirects=False)

    for word in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert word in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]


def test_looking_may_need_the_token(cluster, gate):
    group_id = stuck.waiting_chord(cluster, gate).parent.id
    with browser_of(cluster.app, token=TOKEN, look_needs_token=True) as browser:
        for path in ("/", "/attention", f"/chords/{group_id}"):
            text = browser.get(path)
            assert "Sign in" in text
            assert group_id not in text
        browser.sign_in()
        assert group_id in browser.get("/")


def test_other_names_are_refused(cluster):
    with browser_of(cluster.app, hosts=("localhost", "[::1]")) as browser:
        assert browser.get("/", headers={"Host": "[::1]:5580"})
        browser.get("/", status=400, headers={"Host": "evil.example"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"allow_actions": True}, "expected a token"),
        ({"look_needs_token": True}, "expected a token"),
        ({"token": "short"}, "too short"),
    ],
)
def test_careless_options_are_refused(cluster, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_app(cluster.app, **options)


def test_log_has_no_lines_of_a_stranger(cluster, browser, caplog):
    caplog.set_level(logging.WARNING)
    browser.sign_in()

    browser.act("x%0Afalse line", "settle")

    assert not any(line.startswith("false line") for line in caplog.text.splitlines())
