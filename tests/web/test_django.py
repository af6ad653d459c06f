"""The page among the URLs of a Django site."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from tests.chords import stuck
from tests.web.browsing import CLUSTER, TOKEN

django = pytest.importorskip("django")

pytestmark = CLUSTER


@pytest.fixture
def site(cluster, monkeypatch):
    """A client of a site that has the page at /ops/chords/."""
    from django.conf import settings

    if not settings.configured:
        settings.configure(SECRET_KEY="secret", ALLOWED_HOSTS=["*"])
        django.setup()
    from django.test import Client, override_settings
    from django.urls import clear_url_caches, include, path

    from chordguard.web import django_urls

    urls = ModuleType("urls_of_the_page")
    page = django_urls(cluster.app, allow_actions=True, token=TOKEN)
    urls.urlpatterns = [path("ops/chords/", include(page))]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, urls.__name__, urls)
    with override_settings(ROOT_URLCONF=urls.__name__):
        clear_url_caches()
        yield Client(enforce_csrf_checks=True)
    clear_url_caches()


def test_page_is_shown_and_leads_to_itself(cluster, gate, site):
    group_id = stuck.waiting_chord(cluster, gate).parent.id

    found = site.get("/ops/chords/")

    text = found.content.decode()
    assert (200, True) == (found.status_code, group_id in text)
    assert "default-src 'none'" in found["Content-Security-Policy"]
    addresses = re.findall(r'(?:src|href|action)="(/[^"]*)"', text)
    assert all(address.startswith("/ops/chords/") for address in addresses)
    style = site.get(next(a for a in addresses if a.endswith("page.css")))
    assert (200, "text/css; charset=utf-8") == (style.status_code, style["Content-Type"])
    assert "On its way" in site.get(f"/ops/chords/chords/{group_id}").content.decode()
    assert 404 == site.get("/ops/chords/no-such-page").status_code


def test_acting_needs_the_token_and_a_form_of_the_page(cluster, gate, site):
    result = stuck.part_lost(cluster, gate)
    acts = f"/ops/chords/chords/{result.parent.id}/acts"
    form = {"act": "repair", "shown": "recount"}
    assert 403 == site.post(acts, form).status_code

    kind = "application/x-www-form-urlencoded"
    signed_in = site.post("/ops/chords/sign-in", f"token={TOKEN}", content_type=kind)
    assert (303, "/ops/chords") == (
        signed_in.status_code,
        signed_in.cookies["chordguard_session"]["path"],
    )
    text = site.get("/ops/chords/").content.decode()
    (key,) = re.findall(r'name="key" value="(\w+)"', text)
    done = site.post(acts, f"act=repair&shown=recount&key={key}", content_type=kind)

    assert 303 == done.status_code
    assert [1, 2] == cluster.run(result)
