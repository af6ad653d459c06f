"""The page among Django's URLs: a view that hands requests to it and its answers back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from django.views.decorators.csrf import csrf_exempt

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ("urls",)


def urls(page: Starlette) -> Any:
    """Return what ``include`` takes."""

    def view(request: HttpRequest, rest: str) -> HttpResponse:
        return _answered(page, request, rest)

    # Its forms are protected by a key of its own.
    return [re_path(r"^(?P<rest>.*)$", csrf_exempt(view))], "chordguard"


def _answered(page: Starlette, request: HttpRequest, rest: str) -> HttpResponse:
    root = request.path[: len(request.path) - len(rest)].rstrip("/")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": root,
        "query_string": request.META.get("QUERY_STRING", "").encode("latin-1", "replace"),
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in request.headers.items()
        ],
        "client": (request.META.get("REMOTE_ADDR") or "unknown", 0),
        "server": (request.META.get("SERVER_NAME", ""), 0),
    }
    sent: list[dict[str, Any]] = []
    asked = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async_to_sync(page)(scope, receive, send)
    start, *bodies = sent
    answer = HttpResponse(b"".join(body.get("body", b"") for body in bodies))
    answer.status_code = start["status"]
    del answer["Content-Type"]
    for name, value in start["headers"]:
        text = value.decode("latin-1")
        if name == b"set-cookie":
            answer.cookies.load(text)
        elif name != b"content-length":
            answer[name.decode("latin-1")] = text
    return answer
