"""The pages and where they are: an application of Starlette, rendered by Jinja2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from .. import __version__, masking
from ..engine.patch import is_patched
from ..errors import ChordguardError
from ..ledger.access import bounded_ledger
from ..recovery.kinds import KINDS
from ..recovery.wording import TITLES, WORDS, duration
from .acts import ACTS, Acts
from .files import FILES, file_named
from .guard import Guard, Shield, who
from .listing import AGES, ORDERS, Asked, Row, Verdict, attention_of, listing_of
from .one import ended_of, one_of
from .text import clean
from .watch import Watch

if TYPE_CHECKING:
    from celery import Celery
    from starlette.requests import Request

__all__ = ("make",)

#: Of the chords that need somebody the first page shows so many.
ON_FIRST_PAGE = 3

#: Bytes that a form may have.
MOST_OF_FORM = 4096

#: How long an id in a URL may be.
MOST_OF_ID = 300


class NotPatched(ChordguardError, ValueError):
    """The app has not called `install_patches`, so nothing is known of its chords."""


def make(
    app: Celery,
    *,
    allow_actions: bool,
    token: str | None,
    look_needs_token: bool,
    hosts: tuple[str, ...] | None,
) -> Starlette:
    """Return the application; see :func:`chordguard.web.create_app`."""
    if not is_patched(app):
        raise NotPatched(f"the app {app.main!r} has not called chordguard.install_patches(app)")
    guard = Guard(token, allow_actions=allow_actions, look_needs_token=look_needs_token)
    pages = Pages(app, guard)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        # The first page finds that somebody has begun to look.
        pages.watch.begin()
        yield
        pages.watch.close()

    routes = [
        Route("/", pages.looking(pages.chords), name="chords"),
        Route("/attention", pages.looking(pages.attention), name="attention"),
        Route("/chords/{group_id:path}/acts", pages.act, methods=["POST"], name="act"),
        Route("/chords/{group_id:path}", pages.looking(pages.chord), name="chord"),
        Route("/sign-in", pages.sign_in, methods=["GET", "POST"], name="sign-in"),
        Route("/sign-out", pages.sign_out, methods=["POST"], name="sign-out"),
        Route("/static/{version}/{name}", static, name="static"),
    ]
    handlers: Mapping[Any, Any] = {HTTPException: pages.failed, Exception: pages.broken}
    page = Starlette(
        routes=routes,
        middleware=[Middleware(Shield, hosts=hosts)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    page.state.watch = pages.watch
    return page


class Pages:
    """What is answered.

    Arguments:
        app: A Celery app with the patches.
        guard: Who may look and act.
    """

    def __init__(self, app: Celery, guard: Guard) -> None:
        self.app = app
        self.guard = guard
        self.watch = Watch(app)
        self.acts = Acts(app, self.watch)
        self._templates = _templates()

    def looking(self, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """Return a page that is shown to whom may look. It runs in a thread: it reads servers."""

        def answer(request: Request) -> Response:
            if self.guard.may_look(request):
                return page(request)
            return RedirectResponse(f"{_root(request)}/sign-in", 303)

        return answer

    def chords(self, request: Request) -> Response:
        """Show live chords."""
        asked, problem, listing = Asked.of(request.query_params), "", None
        rows: list[Row] = []
        try:
            with bounded_ledger(self.app) as ledger:
                listing = listing_of(self.watch, ledger, asked)
                rows = attention_of(self.watch, ledger, most=ON_FIRST_PAGE)
        except Exception as exc:  # noqa: BLE001 - it is told
            problem = masking.told(exc)
        shown = [*rows, *(listing.rows if listing else ())]
        values: dict[str, Any] = {"asked": asked, "listing": listing, "troubles": rows}
        return self._page(request, "chords.html", problem, shown, **values)

    def attention(self, request: Request) -> Response:
        """Show the chords that need somebody."""
        problem, rows = "", list[Row]()
        try:
            with bounded_ledger(self.app) as ledger:
                rows = attention_of(self.watch, ledger)
        except Exception as exc:  # noqa: BLE001 - it is told
            problem = masking.told(exc)
        return self._page(request, "attention.html", problem, rows, troubles=rows)

    def chord(self, request: Request) -> Response:
        """Show one chord."""
        group_id = request.path_params["group_id"][:MOST_OF_ID]
        page = request.query_params.get("page", "1")
        number = int(page) if page.isascii() and page.isdecimal() and len(page) < 7 else 1
        problem, one, ended = "", None, None
        try:
            with bounded_ledger(self.app) as ledger:
                one = one_of(self.watch, ledger, group_id, max(1, number))
                ended = None if one else ended_of(self.watch, ledger, group_id)
        except Exception as exc:  # noqa: BLE001 - it is told
            problem = masking.told(exc)
        status = 200 if one or ended or problem else 404
        rows = [one.row] if one else []
        return self._page(
            request,
            "chord.html",
            problem,
            rows,
            status=status,
            group_id=group_id,
            one=one,
            ended=ended,
            acts=self.acts.of(group_id),
        )

    async def act(self, request: Request) -> Response:
        """Repair, settle or revoke a chord."""
        group_id = request.path_params["group_id"][:MOST_OF_ID]
        if not self.guard.allows_actions:
            raise HTTPException(403, "This page only shows chords: start it with --allow-actions")
        if not self.guard.is_signed_in(request):
            raise HTTPException(403, "Sign in with the token first")
        form = await _form(request)
        if not self.guard.is_our_form(request, form.get("key", "")):
            raise HTTPException(403, "This form is not of this page, or it is old: load it anew")
        name = form.get("act", "")
        if name not in ACTS:
            raise HTTPException(400, f"Expected one of {', '.join(ACTS)}")
        shown = form.get("shown", "")
        await run_in_threadpool(self.acts.do, name, group_id, shown, who(request))
        self.watch.forget()
        return RedirectResponse(f"{_root(request)}/chords/{quote(group_id)}#acts", 303)

    async def sign_in(self, request: Request) -> Response:
        """Ask for the token, and take it."""
        if request.method == "GET":
            return self._page(request, "sign_in.html", is_wrong=False)
        form = await _form(request)
        answer: Response = RedirectResponse(f"{_root(request)}/", 303)
        if self.guard.sign_in(request, answer, form.get("token", "")):
            return answer
        return self._page(request, "sign_in.html", status=403, is_wrong=True)

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        answer = RedirectResponse(f"{_root(request)}/", 303)
        if self.guard.is_our_form(request, (await _form(request)).get("key", "")):
            self.guard.sign_out(request, answer)
        return answer

    async def failed(self, request: Request, exc: Exception) -> Response:
        """Say what was wrong with a request."""
        status = getattr(exc, "status_code", 500)
        told = getattr(exc, "detail", "")
        return self._page(request, "failed.html", status=status, code=status, told=told)

    async def broken(self, request: Request, exc: Exception) -> Response:
        """Say that a page could not be made."""
        return self._page(request, "failed.html", status=500, code=500, told=masking.told(exc))

    def _page(
        self,
        request: Request,
        name: str,
        problem: str = "",
        rows: Sequence[Row] = (),
        status: int = 200,
        **values: Any,
    ) -> Response:
        look = self.watch.look()
        may_look = self.guard.may_look(request)
        text = self._templates.get_template(name).render(
            root=_root(request),
            path=request.scope["path"],
            app_name=self.app.main or "celery",
            verdict=Verdict.of(look, problem, rows),
            problem=problem,
            period=look.period,
            attention=len(look.attention),
            may_look=may_look,
            guard=self.guard,
            is_signed_in=self.guard.is_signed_in(request),
            key=self.guard.form_key(request),
            **values,
        )
        return HTMLResponse(text, status, {"Cache-Control": "no-store"})


def static(request: Request) -> Response:
    """Return a file of the page; its address changes with the version."""
    found = file_named(request.path_params["name"])
    if found is None:
        raise HTTPException(404, "There is no such file")
    content, kind = found
    cached = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(content, media_type=kind, headers=cached)


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_OF_FORM:
            raise HTTPException(413, "This form is too large")
    return dict(parse_qsl(body.decode(errors="replace")))


def _root(request: Request) -> str:
    """Return the path that the page is mounted at."""
    return quote(str(request.scope.get("root_path") or "").rstrip("/"))


def _templates() -> jinja2.Environment:
    """Return the templates. All that they show is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "chordguard.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(clean=clean, duration=duration)
    templates.globals.update(
        version=__version__,
        files=FILES,
        quoted=lambda text: quote(str(text), safe=""),
        kinds=KINDS,
        titles=TITLES,
        words=WORDS,
        ages=AGES,
        orders=ORDERS,
    )
    return templates
