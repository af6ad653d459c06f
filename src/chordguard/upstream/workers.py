"""Ask the broker and the workers, with a bound on the time that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .. import masking
from ..errors import CannotTell

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "address_of_broker",
    "bound_workers",
    "broker_of",
    "inspector",
    "most_answers",
    "ping_workers",
    "redis_command",
)

#: Seconds for which the broker, and then the workers, may take to answer.
ASKING_SECONDS = 1.0


@contextmanager
def broker_of(app: Celery, seconds: float = ASKING_SECONDS) -> Iterator[Any]:
    """Yield a connection to the broker, for whom cannot wait: Celery's own is tried for ever.

    Arguments:
        app: The app.
        seconds: After which a connection is given up.

    Raises:
        CannotTell: It cannot be reached.
    """
    with ExitStack() as stack:
        try:
            # It raises where the URL cannot be parsed.
            connection = stack.enter_context(app.connection_for_write(connect_timeout=seconds))
            if connection.transport.driver_type == "redis":
                # It does not look at the timeout; a worker's answer is read by a command that
                # itself waits for a second.
                connection.transport_options = {
                    **connection.transport_options,
                    "socket_connect_timeout": seconds,
                    "socket_timeout": seconds + 1.0,
                }
            connection.ensure_connection(max_retries=1, timeout=seconds)
        except Exception as exc:  # noqa: BLE001 - it is told
            why = masking.words_of(exc, "broker_url")
            raise CannotTell(
                f"the broker {address_of_broker(app)} cannot be reached: {why}"
            ) from masking.cause_to_show(exc)
        yield connection


def address_of_broker(app: Celery) -> str:
    """Return the URL of the broker without user name and password."""
    return masking.address_of(app.conf.broker_write_url or "amqp://")


def inspector(
    app: Celery, connection: Any, workers: Sequence[str] | None = None, limit: int | None = None
) -> Any:
    """Return Celery's `Inspect` on a bounded connection; `limit`: after so many answers it ends."""
    inspect = app.control.inspect
    return inspect(destination=workers, timeout=ASKING_SECONDS, limit=limit, connection=connection)


def most_answers(app: Celery, connection: Any) -> int | None:
    """Return how many workers can answer; None where the broker does not tell."""
    if connection.transport.driver_type != "redis":
        return None
    with connection.channel() as channel:
        return len(set(bound_workers(app, channel))) or None


def bound_workers(app: Celery, channel: Any) -> Iterator[str]:
    """Yield the names of the workers that hear control commands, or were killed while they did."""
    exchange = app.control.mailbox.exchange.name
    for entry in redis_command(channel, "SMEMBERS", channel.keyprefix_queue % exchange):
        queue = entry.decode().rpartition(channel.sep)[2]
        if queue.endswith(f".{exchange}"):
            yield queue.removesuffix(f".{exchange}")


def redis_command(channel: Any, name: str, key: str, *values: Any) -> Any:
    """Execute a command on a key that has the broker's prefix, which kombu gives to some only."""
    is_prefixed = name in getattr(channel.client, "PREFIXED_SIMPLE_COMMANDS", ())
    prefix = "" if is_prefixed else getattr(channel, "global_keyprefix", "") or ""
    return channel.client.execute_command(name, f"{prefix}{key}", *values)


def ping_workers(app: Celery, names: Sequence[str] | None = None) -> list[str]:
    """Return the names of the workers that answer, among `names` or all.

    Raises:
        CannotTell: The broker cannot be reached.
    """
    with broker_of(app) as connection:
        try:
            return list(inspector(app, connection, names).ping() or ())
        except Exception as exc:  # noqa: BLE001 - it is told
            where = address_of_broker(app)
            raise CannotTell(
                f"the broker {where} cannot be read: {masking.told(exc)}"
            ) from masking.cause_to_show(exc)
