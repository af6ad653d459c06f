"""The command `web`: the page for operators."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .calling import HEALTHY, Answer, Cannot, command, say

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("web",)

#: Where the token is looked for, unless a file is named.
TOKEN = "CHORDGUARD_WEB_TOKEN"  # noqa: S105 - the name of a variable

#: The names by which a page that only this machine reaches may be called.
LOCAL = ("localhost", "127.0.0.1", "[::1]")

#: Seconds for which open requests are waited for when it stops.
STOPPING_SECONDS = 5


@command("web")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=5580, show_default=True)
@click.option(
    "--allow-actions",
    "is_acting",
    is_flag=True,
    help="Let chords be repaired, settled and revoked on it, by whom has the token.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read the token from there. Else it is that of {TOKEN}, or a new one is printed.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name by which it may be called, behind a proxy. May be given several times.",
)
def web(
    app: Celery,
    host: str,
    port: int,
    is_acting: bool,
    token_file: Path | None,
    names: tuple[str, ...],
) -> Answer:
    """Serve a page that shows chords, until Ctrl-C.

    It only shows them, unless --allow-actions is given. On an address that other machines reach,
    looking needs the token, too. It needs chordguard[web].
    """
    is_local = host in ("localhost", "127.0.0.1", "::1")
    token, is_new = _token(token_file) if is_acting or not is_local else (None, False)
    try:
        import uvicorn

        from ..web import create_app

        page = create_app(
            app,
            allow_actions=is_acting,
            token=token,
            look_needs_token=not is_local,
            hosts=(*LOCAL, *names) if is_local else (names or None),
        )
    except ImportError as exc:
        from ..web import WebMissing

        raise Cannot(str(WebMissing.of(exc))) from exc
    except ValueError as exc:
        raise Cannot(str(exc)) from exc
    listening = _listen(host, port)
    config = uvicorn.Config(
        page,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOPPING_SECONDS,
    )
    shown = f"[{host}]" if ":" in host else host
    say(f"Chords of {app.main or 'the app'}: http://{shown}:{listening.getsockname()[1]}/")
    if is_new:
        say(f"Token: {token}")
    _serve(uvicorn.Server(config), listening)
    return Answer(HEALTHY, is_shown=True)


def _token(path: Path | None) -> tuple[str, bool]:
    """Return the token, and whether it is a new one."""
    try:
        given = path.read_text(encoding="utf-8").strip() if path else os.environ.get(TOKEN, "")
    except (OSError, UnicodeDecodeError) as exc:
        raise Cannot(f"{path} cannot be read: {exc}") from exc
    if path and not given:
        raise Cannot(f"{path} is empty: expected a token in it")
    return (given, False) if given else (secrets.token_urlsafe(32), True)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        Cannot: The address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as exc:
        raise Cannot(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc


def _serve(server: Any, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    Not in the main thread, where the server would handle signals and raise them again.
    """
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }

    def run() -> None:
        try:
            server.run(sockets=[listening])
        finally:
            stopped.set()

    thread = threading.Thread(target=run, name="chordguard-web")
    thread.start()
    try:
        stopped.wait()
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        for number, handler in before.items():
            signal.signal(number, handler)
