"""The page in a real browser: Chromium, driven by playwright, on a page that a process serves.

Skipped where neither is there. With AXE_CORE, the path of axe-core's `axe.min.js`, accessibility is
checked, too; with CHORDGUARD_PICTURES, a folder, the pictures of the documents are made there.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from celery import chord

from chordguard import tolerant
from tests.chords import stuck
from tests.harness import wait_until
from tests.web.browsing import CLUSTER, TOKEN
from tests.web.test_serving import served

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
AXE = os.environ.get("AXE_CORE", "")
PICTURES = os.environ.get("CHORDGUARD_PICTURES", "")

pytestmark = [
    CLUSTER,
    pytest.mark.nightly,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium"),
]

#: Milliseconds that the page may take to show what has changed: an update, and a look at workers.
SOON = 30_000

WIDTHS = (320, 768, 1920)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(cluster, tmp_path):
    """The address of the page of the cluster's app, on which may be acted."""
    with served(cluster, tmp_path, "--allow-actions", CHORDGUARD_WEB_TOKEN=TOKEN) as found:
        yield found.address.rstrip("/")


@pytest.fixture
def page(chromium):
    """A page in a fresh browser; whatever is said in its console fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    found = context.new_page()
    found.on("console", lambda m: said.append(f"{m.type}: {m.text}") if m.type != "debug" else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda r: said.append(r.url) if "127.0.0.1" not in r.url else None)
    yield found
    context.close()
    assert [] == [line for line in said if "Password forms" not in line]


def test_members_that_finish_are_seen_without_loading_the_page_again(cluster, gate, site, page):
    result = stuck.waiting_chord(cluster, gate)
    group_id = result.parent.id
    page.goto(f"{site}/")
    row = page.locator(f'tr[data-key="{group_id}"]')
    playwright.expect(row).to_contain_text("1/2")
    page.evaluate("window.isTheSame = true")

    page.goto(f"{site}/chords/{group_id}")
    page.evaluate("window.isTheSame = true")
    summary = page.locator("summary")
    summary.click()
    summary.focus()
    playwright.expect(page.locator("table.members")).to_contain_text("PENDING")
    gate.open()

    playwright.expect(page.locator("h1")).to_have_text("It has ended", timeout=SOON)
    assert page.evaluate("window.isTheSame") is True
    assert [1, 2] == cluster.run(result)


def test_what_somebody_uses_stays_while_the_page_updates(cluster, gate, site, page):
    first = stuck.waiting_chord(cluster, gate).parent.id
    page.set_viewport_size({"width": 1280, "height": 420})
    page.goto(f"{site}/")
    page.locator("input[name=q]").fill("half a wo")
    link = page.locator(f'tr[data-key="{first}"] a')
    link.focus()
    place = link.bounding_box()
    second = stuck.member_lost(cluster, gate).parent.id

    # In the list, nothing comes or moves, though something comes above it; it tells that there is
    # more.
    note = page.locator(".changes")
    playwright.expect(note).to_contain_text("1 more", timeout=SOON)
    playwright.expect(page.locator("article.trouble")).to_have_count(1, timeout=SOON)
    assert place == pytest.approx(link.bounding_box(), abs=1)
    assert first in page.evaluate("document.activeElement.getAttribute('href')")
    assert "half a wo" == page.locator("input[name=q]").input_value()
    page.locator("input[name=q]").focus()
    playwright.expect(page.locator(f'tr[data-key="{second}"]')).to_be_visible(timeout=SOON)


def test_stuck_chord_is_shown_and_repaired(cluster, gate, site, page):
    result = stuck.part_lost(cluster, gate)
    page.goto(f"{site}/")
    verdict = page.locator(".verdict")
    playwright.expect(verdict).to_contain_text("1 of 1 live chord needs attention", timeout=SOON)
    page.get_by_role("link", name="Look and repair").click()
    page.get_by_role("link", name="Sign in", exact=True).click()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Look and repair").click()
    page.get_by_role("button", name="Repair it").click()

    playwright.expect(page.locator("#acts")).to_contain_text("done: count the members")
    assert [1, 2] == cluster.run(result)
    page.get_by_role("link", name="Live chords").click()
    playwright.expect(verdict).to_contain_text("No live chords", timeout=SOON)


def test_it_works_without_javascript(cluster, gate, site, chromium):
    group_id = stuck.part_lost(cluster, gate).parent.id
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()

    def is_told():
        page.goto(f"{site}/chords/{group_id}")
        return page.get_by_role("button", name="Repair it").count()

    wait_until(is_told, what="the repair")
    assert not page.get_by_role("button", name="Pause updates").is_visible()
    page.get_by_role("button", name="Repair it").click()
    assert "done: count the members" in page.locator("#acts").inner_text()
    context.close()


def test_server_that_is_gone_is_told(cluster, gate, tmp_path, chromium):
    stuck.waiting_chord(cluster, gate)
    with served(cluster, tmp_path) as found:
        page = chromium.new_page()
        page.goto(found.address)
        playwright.expect(page.locator("h1")).to_contain_text("All is well", timeout=SOON)
        found.process.kill()
        playwright.expect(page.locator("#updated")).to_contain_text("Not connected", timeout=SOON)
        assert "stale" in page.locator("body").get_attribute("class")
        page.close()


def test_pause_stops_updates(cluster, gate, site, page):
    page.goto(f"{site}/")
    page.get_by_role("button", name="Pause updates").click()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(5000)

    assert [] == asked
    assert "Paused" in page.locator("#updated").inner_text()


HOSTILE = '<script>document.title="caught"</script><img src=x onerror="document.title=1">\x1b[31m'


def hostile_chord(cluster, gate):
    t = cluster.tasks
    header = [t.fail.s(HOSTILE), t.fail.s(HOSTILE + "A" * 10_000_000), t.wait_for_file.s(gate.path)]
    result = tolerant(chord(header, t.collect.s())).apply_async()
    ledger = stuck.ledger_of(cluster)
    wait_until(lambda: ledger.read(result.parent.id).returned == 2, what="the failures")
    return result


def test_hostile_errors_do_nothing(cluster, gate, site, page):
    result = hostile_chord(cluster, gate)

    page.goto(f"{site}/chords/{result.parent.id}")
    playwright.expect(page.locator("table.members")).to_contain_text("<script>document")
    page.wait_for_timeout(5000)  # two updates

    assert page.title().startswith("tests.collect")
    assert 0 == page.locator("img[src=x]").count()
    assert len(page.content()) < 100_000


def axe_findings(page):
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run().then((r) => r.violations)")
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical", "moderate")
        for node in one["nodes"]
    ]


@pytest.mark.skipif(not Path(AXE).is_file(), reason="needs AXE_CORE")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_every_width(cluster, gate, site, chromium, scheme):
    hostile = hostile_chord(cluster, gate).parent.id
    lost = stuck.member_lost(cluster, gate).parent.id
    for width in WIDTHS:
        # axe is injected, which the policy of the page refuses.
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
        )
        page = context.new_page()
        page.goto(f"{site}/")
        trouble = page.locator("article.trouble")
        playwright.expect(trouble.first).to_be_visible(timeout=SOON)
        paths = [
            "/",
            "/attention",
            f"/chords/{hostile}",
            f"/chords/{lost}",
            "/chords/x",
            "/sign-in",
        ]
        for path in paths:
            page.goto(site + path)
            assert [] == axe_findings(page), (path, width)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, wide)
        context.close()


def test_keyboard_alone_reaches_a_chord(cluster, gate, site, page):
    group_id = stuck.waiting_chord(cluster, gate).parent.id
    page.goto(f"{site}/")
    playwright.expect(page.locator(f'tr[data-key="{group_id}"]')).to_be_visible(timeout=SOON)
    for _ in range(25):
        page.keyboard.press("Tab")
        if group_id in (page.evaluate("document.activeElement.getAttribute('href')") or ""):
            break
    page.keyboard.press("Enter")

    page.wait_for_url(re.compile(group_id))


@pytest.mark.skipif(not PICTURES, reason="needs CHORDGUARD_PICTURES")
def test_pictures_of_the_documents(cluster, gate, site, chromium):
    """Not a test: `docs/operators.md` shows what it makes."""
    t = cluster.tasks
    stuck.member_lost(cluster, gate)
    inner = chord([t.wait_for_file.s(gate.path, 1), t.echo.s(2)], t.tsum.s())
    chord([inner, *(t.echo.s(number) for number in range(30))], t.collect.s()).apply_async()
    failing = tolerant(
        chord([t.fail.s(), t.echo.s(1), t.wait_for_file.s(gate.path)], t.collect.s())
    )
    failing_id = failing.apply_async().parent.id
    for number in range(3):
        header = [t.echo.s(each) for each in range(5 * number)]
        chord([*header, t.wait_for_file.s(gate.path)], t.collect.s()).apply_async()
    ledger = stuck.ledger_of(cluster)
    wait_until(lambda: ledger.read(failing_id).returned == 2, what="the failure")
    folder = Path(PICTURES)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in (("chords", "/"), ("chord", f"/chords/{failing_id}")):
        for scheme in ("light", "dark"):
            context = chromium.new_context(
                viewport={"width": 1100, "height": 800}, color_scheme=scheme
            )
            page = context.new_page()
            page.goto(f"{site}/attention")
            playwright.expect(page.locator("article.trouble").first).to_be_visible(timeout=SOON)
            page.goto(site + path)
            page.screenshot(path=str(folder / f"{name}-{scheme}.png"))
            context.close()
