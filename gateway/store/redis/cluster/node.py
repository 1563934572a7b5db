"""One node of a Redis Cluster: its connection, and its scripts.

`client` decides which node gets a command. A node says with each reply whether it has the key and
takes writes, so there is no probe. `client` checks the schema version, on the node with its key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis import exceptions as redis_errors

from gateway.store.redis.client import RedisClient
from gateway.store.redis.connection import PipelinedConnection, RawCommand
from gateway.store.redis.faults import CONNECTION_ERRORS, Fault, code_of
from gateway.store.redis.keys import Keys
from gateway.store.redis.outage import Outage
from gateway.store.redis.replication import Replication
from gateway.store.redis.rights import find_missing_rights
from gateway.store.redis.scripts import Script
from gateway.store.redis.topology.single import SingleServer
from gateway.store.redis.urls import TIMEOUT_SECONDS

_CANNOT_CONNECT: Final = (*CONNECTION_ERRORS, redis_errors.ResponseError)


class NotSent(Exception):
    """The node could not be connected to, so it has executed nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _retires(error: BaseException) -> bool:
    # A node that refuses writes may accept them again, or redirect, on the same connection. Only
    # another password needs another connection.
    return code_of(error) == "NOAUTH"


class NodeClient(RedisClient):
    """The connection to one node, made when it is needed."""

    _retires = staticmethod(_retires)

    def __init__(
        self,
        server: SingleServer,
        *,
        name: str,
        keys: Keys,
        scripts: Sequence[Script],
        holds_books: bool,
        find_fence: Callable[[], str],
        has_slots: Callable[[], bool],
    ) -> None:
        """`find_fence` returns a key in one of its slots that no other command uses."""
        super().__init__(server, keys=keys, scripts=scripts, holds_books=holds_books)
        self.name = name
        self._subject = f"The node {name} of the Redis Cluster"
        self.server = server
        self._find_fence = find_fence
        self._has_slots = has_slots
        self._replication = Replication(server, find_key=find_fence, find_fault=self._find_fault)
        self.probe_key: str | None = None
        """A key in one of its slots, which no other command uses."""
        self._down_since: float | None = None
        """When the node first could not be used, by the event loop's clock; None while it can."""

    async def send(self, commands: Sequence[RawCommand], *, deadline: float) -> list[Any]:
        """The replies in order. Sends again what failed because the node had lost the scripts.

        If they cannot be loaded, or are lost once more, `NoScriptError` is the reply. Raises
        `NotSent`, or one of `CONNECTION_ERRORS` if some may have been executed.
        """
        handshakes = self._handshakes
        pipeline = await self._connected(deadline)
        replies = await pipeline.execute(commands, deadline=deadline)
        lost = [
            i for i, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)
        ]
        if lost:
            try:
                pipeline = await self._connected(deadline, handshakes=handshakes + 1)
            except NotSent:
                # The other commands were executed: only those that have this reply were not.
                return replies
            repeated = await pipeline.execute([commands[i] for i in lost], deadline=deadline)
            for i, reply in zip(lost, repeated, strict=True):
                replies[i] = reply
        self._down_since = None
        return replies

    async def _connected(self, deadline: float, *, handshakes: int = 1) -> PipelinedConnection:
        try:
            attempt = self._ready_pipeline(deadline, handshakes=handshakes)
            if self._is_given_up and not (self._pipeline and self._pipeline.is_open):
                # The node hangs. Requests that need it fail at once, so that requests for other
                # nodes do not queue behind them. The attempt to connect goes on.
                async with asyncio.timeout(0):
                    return await attempt
            return await attempt
        except _CANNOT_CONNECT as error:
            self.note_down()
            raise NotSent(error) from error

    @property
    def _is_given_up(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._down_since is not None and now - self._down_since > TIMEOUT_SECONDS

    def note_down(self) -> None:
        """The node cannot be used now."""
        if self._down_since is None:
            self._down_since = asyncio.get_running_loop().time()

    @property
    def is_down(self) -> bool:
        """Whether the last attempt to use the node failed."""
        return self._down_since is not None

    def may_wait(self) -> bool:
        """Whether a request should wait for the node: not once it was down for a whole timeout."""
        return not self._is_given_up

    @property
    def has_left(self) -> bool:
        """Whether the connection is closed, after `leave`."""
        return self._pipeline is None or not self._pipeline.is_pending

    def leave(self) -> None:
        """Refuses further commands, and closes once those that were sent have their replies."""
        self._is_closed = True
        if self._attempt is not None:
            # Otherwise it would open a connection that nothing closes.
            self._attempt.cancel()
        # Other nodes have its slots, so nothing waits for this one.
        self._outage.ends()
        self._outage.stop()
        if self._replication is not None:
            self._replication.leave()
        if self._pipeline is not None:
            self._pipeline.retire()

    def unavailable(self, error: Exception, *, outage: Outage | None = None) -> Exception:
        """`StoreUnavailable` with the reason, which is logged."""
        return self.translate(error, "the connection", outage=outage)

    async def _is_available(self) -> bool:
        if not self._has_slots():
            return True  # nothing is sent to it
        delete = (b"DEL", self._find_fence().encode())
        try:
            (reply,) = await self.send([delete], deadline=_deadline())
        except (NotSent, *CONNECTION_ERRORS):
            return False
        is_redirected = isinstance(reply, redis_errors.AskError)  # or moved
        return is_redirected or not isinstance(reply, redis_errors.RedisError)

    async def _shake_hands(self, pipeline: PipelinedConnection, deadline: float) -> None:
        await self._load_scripts(pipeline, deadline)
        self._outage.ends()

    def _find_fault(self, error: BaseException) -> Fault | None:
        if isinstance(error, redis_errors.AskError):  # or moved
            return Fault("sends commands to another node, and that one sends them back.")
        return super()._find_fault(error)

    async def _find_missing_rights(
        self, pipeline: PipelinedConnection, names: Sequence[str], *, deadline: float
    ) -> Fault | None:
        missing = await find_missing_rights(
            pipeline, names, keys=self._keys, deadline=deadline, probe=self.probe_key
        )
        if missing is None:
            return None
        return missing.as_fault(self.addresses.user, self._keys.prefix)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_SECONDS
