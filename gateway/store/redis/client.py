"""One Redis server as the adapter sees it: a deadline, a stamp, and scripts that it remembers.

`Link` is the one place where redis-py's errors become ours. How commands of many callers travel
together is `redis_wire`; what they mean is `redis_calls`; who waits for a publication is
`redis_wakes`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import structlog
from redis import exceptions as faults
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.redis.commands.call import Call
from gateway.store.redis.connection import Command, Wire
from gateway.store.redis.scripts import SCRIPTS, Script

log = structlog.get_logger(__name__)

CALL_SECONDS: Final = 2.0
"""No call to the store is waited for longer (CONTRACT §6)."""

SCHEMES: Final = ("redis", "rediss", "unix")

_WRONG_URL: Final = (
    "The Redis URL cannot be read; it looks like redis://user:password@host:6379/0 or"
    " unix:///path?db=0, with signs like / in a password written as %2F."
)

_DATABASE: Final = re.compile(r"(/\d*)?")

LOST: Final = (faults.ConnectionError, faults.TimeoutError, faults.InvalidResponse, OSError)
"""What a server that is away, silent or talking nonsense looks like (a time-out is an OSError)."""

_FAULTS: Final = (*LOST, faults.ResponseError, SchemaMismatch)
"""What an exchange can come to."""

_OUTAGES: Final = (
    faults.ReadOnlyError,
    faults.ClusterDownError,
    faults.TryAgainError,
)

_OUTAGE_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "READONLY")
"""Refusals that redis-py has no class for, or that reach it without one from within a script."""


def place_of(url: str) -> str:
    """Where a Redis URL leads, without user, password and options.

    Raises ValueError, never quoting the URL, for one that leads nowhere or not yet.
    """
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "redis+cluster"):
        raise ValueError(f"{scheme}:// is not built yet; use redis://, rediss:// or unix://.")
    if scheme not in SCHEMES:
        raise ValueError("A Redis URL begins with redis://, rediss:// or unix://.")
    parts = urlsplit(url)
    if not _is_complete(parts):
        raise ValueError(_WRONG_URL)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_complete(parts: SplitResult) -> bool:
    """Also finds a password with a bare `/`, `?` or `#` in it, which would end the host."""
    if parts.scheme == "unix":
        return bool(parts.path)
    try:
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return bool(parts.hostname) and has_port and bool(_DATABASE.fullmatch(parts.path))


def pool_of(url: str) -> ConnectionPool:
    """Makes connections, and keeps none. Raises ValueError for a wrong option."""
    try:
        return ConnectionPool.from_url(
            url,
            # Whoever uses a connection sets one deadline around all of it. redis-py's own is a
            # `wait_for` a write, which on Python 3.11 can swallow a cancellation.
            socket_timeout=None,
            socket_connect_timeout=CALL_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
    except ValueError:
        raise ValueError(_WRONG_URL) from None


@asynccontextmanager
async def running(name: str, *loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops in tasks of their own until the block is left."""
    tasks = [asyncio.create_task(loop, name=name) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refusal(error: faults.ResponseError, what: str) -> Exception:
    """What a command's error reply becomes: an outage, or else a fault of ours to be loud about."""
    code = str(error).split(" ", 1)[0]
    if isinstance(error, faults.OutOfMemoryError) or code == "OOM":
        return StoreFull()
    if isinstance(error, _OUTAGES) or code in _OUTAGE_CODES:
        return StoreUnavailable()
    return RuntimeError(f"Redis refused {what}: {error}")


class Link:
    """Speaks with one server, within the deadline and never with one of a foreign layout.

    Before anything else is sent to a server, its layout stamp is set or checked and `scripts` are
    loaded; again after every loss of the connection, since it may be another server by then.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        place: str,
        *,
        stamp_key: str,
        scripts: Sequence[Script] = (),
        may_create: bool = True,
    ) -> None:
        self._pool = pool
        self._may_create = may_create
        self._place = place
        self._stamp_key = stamp_key.encode()
        self._scripts = scripts
        self._wire: Wire | None = None
        self._connection: AbstractConnection | None = None
        self._greeting = asyncio.Lock()
        self._greeted = 0
        """How often a server was greeted."""
        self._is_closed = False
        self._complaints: set[str] = set()  # logged since the server was last greeted

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """It connects when first used; who still waits at the end is refused."""
        try:
            yield
        finally:
            self._is_closed = True
            await self._disconnect()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in order; a command that was refused has its `ResponseError` as reply.

        Raises StoreUnavailable when the server is away, slow, or of another layout.
        """
        until = _deadline()
        try:
            return await (await self._greeted_wire(until)).ask(commands, until=until)
        except _FAULTS as error:
            raise self._translated(error) from error

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """`exchange`, also with a server that has forgotten the scripts: it was restarted."""
        until, greeted = _deadline(), self._greeted
        try:
            wire = await self._greeted_wire(until)
            replies = await wire.ask([call.command for call in calls], until=until)
            if again := _to_repeat(calls, replies):
                wire = await self._greeted_wire(until, more_often_than=greeted)
                later = await wire.ask([calls[place].command for place in again], until=until)
                for place, reply in zip(again, later, strict=True):
                    replies[place] = reply
        except _FAULTS as error:
            raise self._translated(error) from error
        return replies

    async def check_schema(self) -> None:
        """Raises LayoutMismatch, StoreMissing or StoreUnavailable if it cannot be used."""
        try:
            await self._greeted_wire(_deadline())
        except LOST as error:
            raise StoreUnavailable from error

    async def _greeted_wire(self, until: float, *, more_often_than: int = 0) -> Wire:
        """The connection, opened if need be; greeted anew if it was not so more often than that."""
        wire = self._wire
        if wire is not None and wire.is_open and self._greeted > more_often_than:
            return wire
        async with asyncio.timeout_at(until), self._greeting:
            if self._wire is None or not self._wire.is_open:
                self._wire = await self._connect(until)
            elif self._greeted <= more_often_than:
                await self._greet(self._wire, until)
            return self._wire

    async def _connect(self, until: float) -> Wire:
        await self._disconnect()
        if self._is_closed:
            raise faults.ConnectionError("the store is closed")
        self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await self._connection.connect()
        wire = Wire(self._connection)
        await self._greet(wire, until)
        return wire

    async def _disconnect(self) -> None:
        if self._wire is not None:
            self._wire.hang_up(faults.ConnectionError("the connection is closed"))
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def _greet(self, wire: Wire, until: float) -> None:
        wanted, may_create = str(SCHEMA_VERSION).encode(), b"%d" % self._may_create
        source = SCRIPTS["stamp"].source
        look = (b"EVAL", source, b"1", self._stamp_key, wanted, may_create)
        (stamp,) = await wire.ask([look], until=until)
        if isinstance(stamp, faults.ResponseError):
            raise refusal(stamp, "the layout stamp") from stamp
        if stamp is None:
            raise StoreMissing(self._place)
        if stamp != wanted:
            raise SchemaMismatch(self._place, str(stamp, errors="replace"))
        await wire.ask([(b"SCRIPT", b"LOAD", s.source) for s in self._scripts], until=until)
        self._greeted += 1
        if self._complaints:
            log.info("store_back", store=self._place)
            self._complaints.clear()

    def _translated(self, error: Exception) -> Exception:
        """What became of an exchange, in our words."""
        if isinstance(error, SchemaMismatch):
            self._complain(str(error))
            return StoreUnavailable(_foreign_layout(error))
        if isinstance(error, faults.ResponseError):
            return refusal(error, "the connection")
        self._complain(f"{type(error).__name__}: {error}")
        return StoreUnavailable()

    def _complain(self, reason: str) -> None:
        """Logs each reason once until the server answers again."""
        if reason not in self._complaints:
            self._complaints.add(reason)
            log.warning("store_unavailable", store=self._place, reason=reason)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + CALL_SECONDS


def _foreign_layout(mismatch: SchemaMismatch) -> str:
    """Its message for callers, who need not know where the store is."""
    return (
        f"The gateway's store has layout version {mismatch.found};"
        f" this gateway reads version {mismatch.wanted}."
    )


def _to_repeat(calls: Sequence[Call], replies: Sequence[Any]) -> list[int]:
    """Which calls to send again because the server had forgotten the scripts.

    Those that failed for it, and the plain reads after the first of them: they were answered
    before what should have come before them.
    """
    again: list[int] = []
    for place, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        if isinstance(reply, faults.NoScriptError) or (again and call.script is None):
            again.append(place)
    return again
