"""Who may look and who may act: a token, a session, forms of our own, and headers for all."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ("LEAST_TOKEN", "Guard", "Shield")

logger = logging.getLogger("chordguard")

COOKIE = "chordguard_session"
#: Seconds for which somebody stays signed in.
SESSION_SECONDS = 12 * 3600
#: The least number of characters of a token.
LEAST_TOKEN = 16

#: Nothing is loaded from elsewhere, nothing inline is run, nobody frames it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" browsers would send our forms with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Knows the token.

    Arguments:
        token: The secret; None: nobody can sign in.
        allow_actions: Whether chords can be repaired by whom is signed in.
        look_needs_token: Whether looking needs a session, too.

    Raises:
        ValueError: There is no token, or a short one, where one is needed.
    """

    def __init__(self, token: str | None, *, allow_actions: bool, look_needs_token: bool) -> None:
        if token is not None and len(token) < LEAST_TOKEN:
            raise ValueError(f"the token is too short: expected {LEAST_TOKEN} characters or more")
        if token is None and (allow_actions or look_needs_token):
            raise ValueError("expected a token, with allow_actions or look_needs_token")
        self._token = token
        self.allows_actions = allow_actions
        self.look_needs_token = look_needs_token

    def may_look(self, request: Request) -> bool:
        """Tell whether a request may see chords."""
        return not self.look_needs_token or self.is_signed_in(request)

    def is_signed_in(self, request: Request) -> bool:
        """Tell whether a request comes from somebody who gave the token."""
        issued, _, rest = request.cookies.get(COOKIE, "").partition(".")
        nonce, _, mark = rest.partition(".")
        if not self._is(mark, self._mark("session", issued, nonce)) or not issued.isdecimal():
            return False
        return 0 <= time.time() - int(issued) < SESSION_SECONDS

    def sign_in(self, request: Request, response: Response, token: str) -> bool:
        """Begin a session if the token is right; return whether it is."""
        if not self._is(token, self._token or ""):
            logger.warning("The page refused a wrong token from %s", who(request))
            return False
        issued, nonce = str(int(time.time())), secrets.token_urlsafe(16)
        response.set_cookie(
            COOKIE,
            f"{issued}.{nonce}.{self._mark('session', issued, nonce)}",
            max_age=SESSION_SECONDS,
            path=request.scope.get("root_path") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        logger.warning("The page let %s sign in", who(request))
        return True

    def sign_out(self, request: Request, response: Response) -> None:
        """End a session in its browser."""
        response.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/")

    def form_key(self, request: Request) -> str:
        """Return what a form of ours carries, which nobody else can know."""
        return self._mark("form", request.cookies.get(COOKIE, ""), "")

    def is_our_form(self, request: Request, key: str) -> bool:
        """Tell whether a form that was sent is one of ours."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return False
        return self._is(key, self.form_key(request))

    def _mark(self, purpose: str, first: str, second: str) -> str:
        text = f"{purpose}\n{first}\n{second}".encode(errors="replace")
        return hmac.new((self._token or "").encode(), text, hashlib.sha256).hexdigest()

    def _is(self, given: str, expected: str) -> bool:
        is_same = hmac.compare_digest(given.encode(errors="replace"), expected.encode())
        return self._token is not None and is_same


def who(request: Request) -> str:
    """Return where a request comes from, for the log."""
    return request.client.host if request.client else "a local caller"


class Shield:
    """Puts the headers on each answer, and refuses calls by another name.

    Arguments:
        app: What it stands before.
        hosts: The names by which it may be called; None: any. A page of another site cannot have
            its own name lead here then.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None = None) -> None:
        self._app = app
        self._hosts = hosts and {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[Any] = message.setdefault("headers", [])
                headers += [(name.lower().encode(), v.encode()) for name, v in HEADERS.items()]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._hosts is not None and _host_of(scope) not in self._hosts:
            answer = PlainTextResponse("This page is not called by that name.\n", 400)
            await answer(scope, receive, send_shielded)
        else:
            await self._app(scope, receive, send_shielded)


def _host_of(scope: Scope) -> str:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    if host.startswith("["):
        return str(host.partition("]")[0] + "]")
    return str(host.partition(":")[0])
