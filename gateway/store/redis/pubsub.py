"""Notifications of flights: one pub/sub connection per process, shared by all watches.

Redis does not store a notification, so it carries no content: it means "read the events again". All
watches are notified when the connection is lost and when it is back. Followers also read the events
from time to time without one; without a server a watch is merely slower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from gateway.conditions import Condition
from gateway.store.redis.faults import CONNECTION_ERRORS
from gateway.store.redis.topology.addresses import Addresses, connect_to_current
from gateway.store.redis.urls import TIMEOUT_SECONDS

log = structlog.get_logger(__name__)

_PING_SECONDS: Final = 5.0
"""An idle connection is pinged this often."""

_SILENT_SECONDS: Final = 11.0
"""A connection on which nothing arrives for this long is closed."""

_RECONNECT_SECONDS: Final = 0.25


class Subscription:
    """A watch of one channel; see `protocol.Watch`."""

    def __init__(self) -> None:
        self._was_notified = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> None:
        """Returns after a notification since the last wait, or after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._was_notified.wait()
        self._was_notified.clear()

    def notify(self) -> None:
        """Ends the current wait, or the next one at once."""
        self._was_notified.set()

    def reset(self) -> None:
        """Drops a notification that no wait has seen."""
        self._was_notified.clear()


@dataclass(slots=True)
class _Channel:
    subscriptions: set[Subscription] = field(default_factory=set)
    is_subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    """The server has confirmed the subscription, or is unavailable."""

    def notify(self) -> None:
        for subscription in self.subscriptions:
            subscription.notify()


class Notifications:
    """Subscribes to channels over one connection, which reconnects by itself.

    It leads to the server that takes the commands: a demoted master would still answer pings, but
    never notify again.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._channels: dict[bytes, _Channel] = {}
        self._outgoing: asyncio.Queue[tuple[bytes, ...]] = asyncio.Queue()
        self._unconfirmed: Counter[bytes] = Counter()  # subscriptions sent without a reply
        self._is_needed = asyncio.Event()
        self._is_replaced = asyncio.Event()
        self._outage = Condition(log, "pubsub_disconnected", "pubsub_connected")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Stays connected until exit, from the first subscription on."""
        task = asyncio.create_task(self._stay_connected(), name="redis-notifications")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def reconnect(self) -> None:
        """The commands have a new connection, which may lead to another server."""
        self._is_replaced.set()

    async def check(self, channel: str) -> None:
        """Subscribes once, over a connection of its own. Raises redis-py's errors."""
        connection = await connect_to_current(self._addresses)
        try:
            await connection.send_packed_command(connection.pack_command(b"SUBSCRIBE", channel))
            await connection.read_response(timeout=TIMEOUT_SECONDS)
        finally:
            await connection.disconnect(nowait=True)

    @asynccontextmanager
    async def subscribe(self, name: str) -> AsyncIterator[Subscription]:
        """Entered once the server has confirmed the subscription, or is unavailable."""
        key, subscription = name.encode(), Subscription()
        if key not in self._channels:
            self._channels[key] = _Channel()
            self._send_subscribe(key)
            self._is_needed.set()
        channel = self._channels[key]
        channel.subscriptions.add(subscription)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await channel.is_subscribed.wait()
            # The confirmation itself was a notification; the events are read now in any case.
            subscription.reset()
            yield subscription
        finally:
            channel.subscriptions.discard(subscription)
            if not channel.subscriptions:
                del self._channels[key]
                self._outgoing.put_nowait((b"UNSUBSCRIBE", key))

    def _send_subscribe(self, key: bytes) -> None:
        self._unconfirmed[key] += 1
        self._outgoing.put_nowait((b"SUBSCRIBE", key))

    async def _stay_connected(self) -> None:
        await self._is_needed.wait()
        while True:
            self._subscribe_again()
            try:
                await self._run_connection()
            # The task group raises groups of errors. `except*` also catches a single error of
            # `connect`.
            except* (*CONNECTION_ERRORS, redis_errors.ResponseError) as errors:
                reason = str(errors.exceptions[0])
                self._outage.occurs(reason, reason=reason)
            # While the server is unavailable no watch waits for it: each reads the events instead.
            for channel in self._channels.values():
                channel.is_subscribed.set()
                channel.notify()
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _subscribe_again(self) -> None:
        """A new connection starts without subscriptions."""
        self._outgoing = asyncio.Queue()
        self._unconfirmed.clear()
        for key, channel in self._channels.items():
            channel.is_subscribed.clear()
            self._send_subscribe(key)

    async def _run_connection(self) -> None:
        """Connects, sends and receives until the connection is lost."""
        self._is_replaced.clear()
        connection = await connect_to_current(self._addresses)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(connection))
                tasks.create_task(self._receive(connection))
                tasks.create_task(self._until_replaced())
        finally:
            await connection.disconnect(nowait=True)

    async def _until_replaced(self) -> None:
        await self._is_replaced.wait()
        raise redis_errors.ConnectionError("the commands have a new connection")

    async def _send(self, connection: AbstractConnection) -> None:
        # Only this task writes, so a subscriber that is cancelled never cuts a command in two.
        outgoing = self._outgoing
        while True:
            command: tuple[bytes, ...] = (b"PING",)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS):
                    command = await outgoing.get()
            await connection.send_packed_command(connection.pack_command(*command))

    async def _receive(self, connection: AbstractConnection) -> None:
        while True:
            message = await connection.read_response(timeout=_SILENT_SECONDS)
            if message is None:
                raise redis_errors.ConnectionError("nothing received from the server")
            self._handle(message)

    def _handle(self, message: Any) -> None:
        """Handles [kind, channel, …]; replies to PING and UNSUBSCRIBE are ignored."""
        if not isinstance(message, list) or message[0] not in (b"message", b"subscribe"):
            return
        kind, key = message[0], message[1]
        if kind == b"subscribe":
            self._unconfirmed[key] -= 1
            self._outage.ends()
        channel = self._channels.get(key)
        if channel is None:
            return
        # A channel may be left and joined again: only the reply to the last SUBSCRIBE confirms it.
        if kind == b"subscribe" and self._unconfirmed[key] <= 0:
            channel.is_subscribed.set()
        # Also by a confirmation: events may have been published while there was no connection.
        channel.notify()
