"""The command for Prometheus: `metrics`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .calling import CANNOT_TELL, HEALTHY, Answer, Cannot, command, say
from .screen import Screen

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("metrics",)


def _address(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Return host and port of HOST:PORT."""
    if value is None:
        return None
    host, port = value.rpartition(":")[::2]
    if not (port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise click.BadParameter(
            f"{value!r} is no address: expected HOST:PORT, such as 127.0.0.1:9808"
        )
    # In brackets stands a host that has colons itself.
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - without a host it is all


@command("metrics")
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write them to this file, *.prom, at once (for the node exporter).",
)
@click.option(
    "--listen", metavar="HOST:PORT", callback=_address, help="Serve them there until stopped."
)
@click.option(
    "--ask-workers", is_flag=True, help="Ask what workers and queues have, which takes seconds."
)
def metrics(
    app: Celery, textfile: Path | None, listen: tuple[str, int] | None, ask_workers: bool
) -> Answer:
    """Print metrics for Prometheus.

    Gauges are read from the ledger each time. Counters are added where PROMETHEUS_MULTIPROC_DIR
    names the directory of the workers on this machine. It needs chordguard[metrics].
    """
    if textfile and listen:
        raise click.UsageError("--textfile and --listen exclude each other")
    try:
        from prometheus_client import write_to_textfile

        from .. import metrics as chord_metrics
    except ImportError as exc:
        raise Cannot(str(exc)) from exc
    registry = chord_metrics.registry_of(app, asks_workers=ask_workers)
    if listen:
        serve(registry, *listen)
        return Answer(HEALTHY, is_shown=True)
    if textfile:
        try:
            # It replaces the file at once: a reader never finds half of it.
            write_to_textfile(str(textfile), registry)
            text = textfile.read_text(encoding="utf-8")
        except OSError as exc:
            raise Cannot(f"{textfile} cannot be written: {exc.strerror}") from exc
        is_up = chord_metrics.is_up(text)
    else:
        text, is_up = chord_metrics.exposed(registry)

    def show(_: Screen) -> None:
        if not textfile:
            click.echo(text, nl=False)

    if is_up:
        return Answer(HEALTHY, {"metrics": text}, show)
    problem = "the chords cannot be read: celery_chord_up is 0"
    return Answer(CANNOT_TELL, {"problem": problem}, show, f"Cannot tell: {problem}")


def serve(registry: Any, host: str, port: int) -> None:
    """Serve metrics until SIGTERM or SIGINT.

    Raises:
        Cannot: The address cannot be used.
    """
    from prometheus_client import start_http_server

    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise Cannot(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    else:
        say(f"Listening on http://{host}:{server.server_port}/metrics")
        stopped.wait()
        server.shutdown()
        server.server_close()
        thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
