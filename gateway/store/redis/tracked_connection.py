"""A connection whose server reports writes to the keys that were read over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from gateway.store.redis.connection import PipelinedConnection, RawCommand
from gateway.store.redis.faults import retires

TRACK: Final[Sequence[RawCommand]] = ((b"HELLO", b"3"), (b"CLIENT", b"TRACKING", b"ON"))


class TrackingRefused(Exception):
    """The server, or a proxy before it, does not track what a connection reads."""


class TrackedConnection(PipelinedConnection):
    """A connection whose server pushes the names of keys that were written since they were read.

    `on_invalidated` gets the names, or None for all keys. `on_announced` gets the messages of the
    channel that `track` subscribes to. `on_lost` is called when the connection is lost.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        on_invalidated: Callable[[Sequence[bytes] | None], None],
        on_lost: Callable[[], None],
        on_announced: Callable[[bytes], None] = lambda _message: None,
    ) -> None:
        super().__init__(connection)
        self._on_invalidated = on_invalidated
        self._on_lost = on_lost
        self._on_announced = on_announced

    async def track(self, *, deadline: float, channel: str | None = None) -> None:
        """Makes the server track what is read, and subscribes to `channel` if there is one.

        Raises `TrackingRefused`, and as `execute`.
        """
        subscribe = [(b"SUBSCRIBE", channel)] if channel is not None else []
        for reply in await self.execute([*TRACK, *subscribe], deadline=deadline):
            if isinstance(reply, redis_errors.RedisError):
                raise reply if retires(reply) else TrackingRefused(str(reply))

    def connection_lost(self, reason: Exception | None) -> None:
        """Fails the pending requests, and calls `on_lost`."""
        super().connection_lost(reason)
        self._on_lost()

    def _receive(self, reply: Any) -> None:
        # The server replies to SUBSCRIBE with a push.
        if not isinstance(reply, hiredis.PushNotification) or reply[0] == b"subscribe":
            super()._receive(reply)
        elif reply[0] == b"invalidate":
            self._on_invalidated(reply[1])
        elif reply[0] == b"message":
            self._on_announced(reply[2])
