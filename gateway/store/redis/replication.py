"""Waits until replicas have what a master has executed, for writes that must survive it.

Replication is asynchronous: if a master is lost, so are the writes that it acknowledged but had not
sent to a replica. A fence is a write of its own followed by `WAIT`, which covers everything that
the server executed before. Fences have a connection of their own, because `WAIT` delays the
commands behind it. Writes at the same time share one fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from redis import exceptions as redis_errors

from gateway.conditions import Condition
from gateway.store.redis.connection import PipelinedConnection
from gateway.store.redis.faults import CONNECTION_ERRORS, Fault, is_reply, retires
from gateway.store.redis.topology.addresses import Address, Addresses
from gateway.store.redis.urls import TIMEOUT_SECONDS

log = structlog.get_logger(__name__)

WAIT_SECONDS: Final = 0.5
"""The longest wait of one fence for replicas."""

LAGGING_SECONDS: Final = 5.0
"""After a replica was too slow for one fence, fences do not wait for it for this long."""

GIVE_UP_SECONDS: Final = 3.0
"""How long a write waits for the first replica. With `min-replicas-max-lag 2`, a master that is
cut off refuses writes before that, and the caller repeats the write on its successor."""

RETRY_SECONDS: Final = 1.0
"""While no replica confirms, one write in this time waits for a fence, and the others do not."""

_PAUSE_SECONDS: Final = 0.1

_KEY_MS: Final = b"60000"

_ERRORS: Final = (*CONNECTION_ERRORS, redis_errors.ResponseError)


class Replication:
    """Says whether replicas have the writes that one server executed, by fences on that server."""

    def __init__(
        self,
        addresses: Addresses,
        *,
        find_key: Callable[[], str],
        find_fault: Callable[[BaseException], Fault | None],
    ) -> None:
        self._fence = _Fence(addresses, find_key)
        self._find_fault = find_fault
        addresses.on_replaced.append(self._fence.drop)
        self._retry_at = 0.0
        self._reason = ""
        self._unconfirmed = Condition(
            log,
            "replication_unconfirmed",
            "replication_confirmed",
            counted="writes",
            fields={"store": addresses.location},
        )

    async def confirm(self, used: PipelinedConnection, is_used: Callable[[], bool]) -> bool:
        """Returns once replicas have what the server of the connection `used` has executed.

        False: another server takes the commands now, and may lack the writes. Repeat them there.
        If no replica answers, logs that and returns True, because a purchase that is paid for
        cannot wait for ever. `is_used` says whether the commands still go over that connection.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_SECONDS
        while True:
            if self._unconfirmed.lasts and loop.time() < self._retry_at:
                self._unconfirmed.occurs(self._reason, reason=self._reason)
                return used.is_open and is_used()
            outcome = await self._fence.wait()
            if not await _is_open(used, outcome) or not is_used():
                return False
            if isinstance(outcome, int) and outcome > 0:
                self._unconfirmed.ends()
                return True
            if isinstance(outcome, redis_errors.AskError):  # or `MovedError`, a subclass
                return False
            if isinstance(outcome, Exception) and retires(outcome):
                return False
            is_final = isinstance(outcome, Exception) and is_reply(outcome)
            if is_final or self._unconfirmed.lasts or loop.time() >= give_up_at:
                self._retry_at = loop.time() + RETRY_SECONDS
                self._reason = self._explain(outcome)
                self._unconfirmed.occurs(self._reason, reason=self._reason)
                return True
            if isinstance(outcome, Exception):
                await asyncio.sleep(_PAUSE_SECONDS)

    def _explain(self, outcome: int | Exception) -> str:
        if not isinstance(outcome, Exception):
            return f"No replica of the Redis has confirmed within {GIVE_UP_SECONDS:g} s."
        fault = self._find_fault(outcome)
        return f"The Redis {fault.text}" if fault is not None else str(outcome)

    def end(self) -> None:
        """Ends all waits."""
        self._fence.end()

    def leave(self) -> None:
        """Ends all waits for good: nothing is written to this server any more."""
        self.end()
        self._unconfirmed.ends()

    async def close(self) -> None:
        """Ends all waits, and returns once no connection is open."""
        self.end()
        await self._fence.until_ended()


class _Fence:
    """Fences on the server at `addresses.current`. `find_key` returns a key to write."""

    def __init__(self, addresses: Addresses, find_key: Callable[[], str]) -> None:
        self._addresses = addresses
        self._find_key = find_key
        self._pipeline: PipelinedConnection | None = None
        self._address: Address | None = None
        self._running: asyncio.Task[int | Exception] | None = None
        self._next: asyncio.Task[int | Exception] | None = None
        self._replicas = 1
        """How many replicas to wait for: all that are connected, as any of them may be promoted."""
        self._lagging_until = 0.0
        self._is_closed = False

    async def wait(self) -> int | Exception:
        """How many replicas have everything that the server had executed before this call.

        Or why the server does not say. Calls at the same time share a fence.
        """
        if self._is_closed:
            return redis_errors.ConnectionError("the store is closed")
        if self._next is None:
            # Redis may have executed the fence that is running before it executed this write.
            self._next = asyncio.create_task(self._run(after=self._running), name="redis-fence")
        task = self._next
        # The fence goes on if this call is cancelled: others may wait for it.
        await asyncio.wait([task])
        if task.cancelled():
            return redis_errors.ConnectionError("the store is closed")
        return task.result()

    def drop(self) -> None:
        """Closes the connection: another server takes the commands now."""
        if self._pipeline is not None:
            self._pipeline.abort(redis_errors.ConnectionError("another server has taken over"))

    def end(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self.drop()

    async def until_ended(self) -> None:
        """Returns once all tasks have ended, one of which may still be opening a connection."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _tasks(self) -> Sequence[asyncio.Task[int | Exception]]:
        return [task for task in (self._running, self._next) if task is not None]

    async def _run(self, *, after: asyncio.Task[int | Exception] | None) -> int | Exception:
        if after is not None:
            await asyncio.wait([after])
        self._running, self._next = self._next, None
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                pipeline = await self._connect()
            replies = await pipeline.execute(
                [
                    # `WAIT` alone would wait for the last write of this connection.
                    (b"SET", self._find_key().encode(), b"1", b"PX", _KEY_MS),
                    (b"WAIT", b"%d" % self._replicas, b"%d" % (1000 * WAIT_SECONDS)),
                    (b"ROLE",),
                ],
                deadline=deadline,
            )
        except _ERRORS as error:
            return error
        for reply in replies:
            if isinstance(reply, redis_errors.RedisError):
                return reply
        _, confirmed, role = replies
        if role[0] != b"master":  # since the last of the other replies
            return redis_errors.ReadOnlyError("READONLY the server has become a replica")
        self._count_replicas(int(confirmed), role)
        return int(confirmed)

    def _count_replicas(self, confirmed: int, role: Any) -> None:
        now = asyncio.get_running_loop().time()
        if confirmed < self._replicas:
            self._lagging_until = now + LAGGING_SECONDS
        self._replicas = max(1, confirmed if now < self._lagging_until else len(role[2]))

    async def _connect(self) -> PipelinedConnection:
        address = self._addresses.current
        if self._pipeline is not None and address != self._address:
            self.drop()
        if self._pipeline is None or not self._pipeline.is_open:
            if address is None:
                raise redis_errors.ConnectionError("another server is being elected")
            self._pipeline = PipelinedConnection(await self._addresses.connect(address))
            self._address, self._replicas, self._lagging_until = address, 1, 0.0
        return self._pipeline


async def _is_open(used: PipelinedConnection, outcome: int | Exception) -> bool:
    """Whether the connection is open.

    If the server is gone, a fence may notice it first. So after a failed fence this pings it.
    """
    if used.is_open and isinstance(outcome, Exception) and not is_reply(outcome):
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        try:
            await used.execute([(b"PING",)], deadline=deadline)
        except CONNECTION_ERRORS:
            return False
    return used.is_open
