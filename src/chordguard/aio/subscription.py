"""The announcements of results on Redis, by one connection for all who wait in an event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from ..upstream import backends

__all__ = ("Subscription",)

logger = logging.getLogger("chordguard")

#: Seconds to wait for the server to confirm that it announces results.
CONFIRMED_IN = 5.0

#: Seconds after which a subscription that failed is tried again; until then results are polled.
RETRY = 5.0

#: What the connection of a subscription is not told: it waits for as long as it takes.
_LEFT_OUT = ("max_connections", "connection_class", "socket_timeout", "health_check_interval")


class Subscription:
    """Subscribes to results, and tells of those that are announced.

    It does nothing on a result backend that announces none, with a redis-py before 4.2, or through
    Sentinel: there results are polled.

    Arguments:
        tell: Called in the event loop with the id of a task, and its result as Redis has it.
        lost: Called when results are not announced any more.

    Attributes:
        ids: The tasks whose results are announced.
    """

    def __init__(self, tell: Callable[[str, Any], None], lost: Callable[[], None]) -> None:
        self.ids: set[str] = set()
        self._tell, self._lost = tell, lost
        self._fresh: set[str] = set()
        self._id_of: dict[bytes, str] = {}
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._client: Any = None
        self._pubsub: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Tell whether results are announced."""
        return self._pubsub is not None

    def take_fresh(self) -> set[str]:
        """Return which results are to be read once more, and forget that.

        What was stored before its subscription was confirmed was not announced.
        """
        fresh, self._fresh = self._fresh, set()
        return fresh

    def refresh(self, task_id: str) -> None:
        """Have a result read once more."""
        self._fresh.add(task_id)

    async def follow(self, backend: Any, wanted: Collection[str]) -> None:
        """Have the results of the tasks announced that are `wanted`, and no others."""
        now = asyncio.get_running_loop().time()
        if now < self._retry_at:
            return
        new = [task_id for task_id in wanted if task_id not in self.ids]
        gone = [task_id for task_id in self.ids if task_id not in wanted]
        # Those that are gone cost less than to say so each time.
        is_many = len(gone) > max(100, len(wanted))
        if not (new or is_many):
            return
        try:
            if self._pubsub is None and not await self._open(backend):
                self._retry_at = float("inf")
                return
            if is_many:
                await self._unfollow(backend, gone)
            if new:
                await self._subscribe(backend, new)
        except Exception:
            logger.debug("Cannot subscribe to results; polling them", exc_info=True)
            self._retry_at = now + RETRY
            await self.close()

    async def _open(self, backend: Any) -> bool:
        client = client_of(backend)
        if client is None:
            return False
        self._client, self._pubsub = client, client.pubsub()
        return True

    async def _subscribe(self, backend: Any, task_ids: Collection[str]) -> None:
        keys = {backend.get_key_for_task(task_id): task_id for task_id in task_ids}
        self._id_of.update(keys)
        *_, last = keys
        confirmed = self._confirmed[last] = asyncio.get_running_loop().create_future()
        await self._pubsub.subscribe(*keys)
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read(self._pubsub))
        try:
            await asyncio.wait_for(confirmed, CONFIRMED_IN)
        finally:
            self._confirmed.pop(last, None)
        self.ids.update(task_ids)
        self._fresh.update(task_ids)

    async def _unfollow(self, backend: Any, task_ids: Collection[str]) -> None:
        keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
        self.ids.difference_update(task_ids)
        for key in keys:
            self._id_of.pop(key, None)
        await self._pubsub.unsubscribe(*keys)

    async def _read(self, pubsub: Any) -> None:
        """Read what is announced, until the connection is lost."""
        try:
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is None:
                    continue
                key = message["channel"]
                if message["type"] == "message" and key in self._id_of:
                    self._tell(self._id_of[key], message["data"])
                elif message["type"] == "subscribe" and key in self._confirmed:
                    self._confirmed[key].set_result(None)
                # What is there already is read without a pause.
                await asyncio.sleep(0)
        except Exception as exc:
            logger.debug("Lost the subscription to results; polling them", exc_info=True)
            self._reader = None
            self._retry_at = asyncio.get_running_loop().time() + RETRY
            for confirmed in self._confirmed.values():
                if not confirmed.done():
                    confirmed.set_exception(exc)
            await self.close()
            self._lost()

    async def close(self) -> None:
        """Close the connection; results are announced again from the next `follow` on."""
        client, pubsub, reader = self._client, self._pubsub, self._reader
        self._client = self._pubsub = self._reader = None
        self.ids.clear()
        self._id_of.clear()
        if reader is not None:
            reader.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reader
        for opened in (pubsub, client):
            if opened is not None:
                with suppress(Exception):
                    # Before redis-py 5 it was called `close`.
                    await getattr(opened, "aclose", opened.close)()
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            with suppress(Exception):
                await pool.disconnect()


def client_of(backend: Any) -> Any:
    """Return an asyncio client that connects as a Redis `backend` does; None where none can."""
    if not backends.is_redis(backend) or "hosts" in backend.connparams:
        return None
    try:
        from redis import asyncio as driver
    except ImportError:  # before 4.2
        return None
    stock, params = backend.redis, backend.connparams
    kind = params.get("connection_class", stock.Connection)
    if issubclass(kind, stock.SSLConnection):
        connection: Any = driver.SSLConnection
    elif issubclass(kind, stock.UnixDomainSocketConnection):
        connection = driver.UnixDomainSocketConnection
    else:
        connection = driver.Connection
    known = {
        name for base in connection.__mro__ for name in inspect.signature(base.__init__).parameters
    }
    taken = {name: params[name] for name in params if name in known and name not in _LEFT_OUT}
    taken.update(socket_timeout=None, decode_responses=False)
    pool = driver.ConnectionPool(connection_class=connection, **taken)
    return driver.Redis(connection_pool=pool)
