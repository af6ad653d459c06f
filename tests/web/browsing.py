"""A page of an app, called in this process as a browser calls it."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from html import unescape
from typing import Any
from urllib.parse import unquote

import pytest

from chordguard.web import create_app
from tests.chords.stuck import ALONE
from tests.harness import wait_until

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

TOKEN = "a-token-that-nobody-guesses"

#: The cluster of all these tests, which is that of the commands' tests.
CLUSTER = pytest.mark.cluster(settings={**ALONE, "result_extended": True}, concurrency=4)


class Browser:
    """A client of a page, which remembers cookies."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str = "/", status: int = 200, **options: Any) -> str:
        """Return the text of a page."""
        answer = self.client.get(path, **options)
        assert status == answer.status_code, answer.text
        return answer.text

    def checked(self, path: str = "/") -> str:
        """Return the text of a page after workers and queues were asked."""
        asked = time.time()
        watch = self.client.app.state.watch  # type: ignore[attr-defined]
        watch.forget()
        wait_until(lambda: watch.look().taken - watch.look().took > asked, what="a look")
        return self.get(path)

    def sign_in(self, token: str = TOKEN) -> int:
        answer = self.client.post("/sign-in", data={"token": token}, follow_redirects=False)
        return int(answer.status_code)

    def act(self, group_id: str, act: str, key: str | None = None, **data: str) -> Any:
        """Send a form of a chord's page; `key` is what it carries, that of the page otherwise."""
        if key is None:
            (key,) = set(re.findall(r'name="key" value="(\w*)"', self.get("/"))) or {""}
        headers = data.pop("headers", {})
        return self.client.post(
            f"/chords/{group_id}/acts",
            data={"act": act, "key": key, **data},
            headers=headers,
            follow_redirects=False,
        )


@contextmanager
def browser_of(app: Any, **options: Any) -> Any:
    """Yield a browser of an app's page."""
    with TestClient(create_app(app, **options), base_url="http://localhost") as client:
        yield Browser(client)


def verdict(text: str) -> tuple[str, str]:
    """Return the tone and the sentence of the verdict of a page."""
    tone, sentence = re.findall(r'class="verdict (\w+)".*?<h1>(.*?)</h1>', text, re.DOTALL)[0]
    return tone, unescape(sentence)


def listed(text: str) -> list[str]:
    """Return the ids of the chords that a page lists."""
    return [unquote(key) for key in re.findall(r'<tr role="row" data-key="(.*?)"', text)]
