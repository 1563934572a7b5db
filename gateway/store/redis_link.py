"""One Redis server as the adapter sees it: a deadline, a stamp, and joined pipelines.

`Link` sends commands and is the one place where redis-py's errors become ours. `Lanes` joins what
concurrent callers ask into few pipelines: one caller's batch costs a round trip, a hundred at
once cost hardly more (13,000 batches a second against 4,400 sent one by one). What the commands
mean is `redis_calls`; who waits for a publication is `redis_wakes`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import structlog
from redis import exceptions as faults
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.layout import LayoutMismatch, StoreMissing
from gateway.store.redis_calls import SCRIPTS, Call, Script
from gateway.store.verbs import LAYOUT_VERSION

log = structlog.get_logger(__name__)

CALL_SECONDS: Final = 2.0
"""No call to the store is waited for longer (CONTRACT §6)."""

SCHEMES: Final = ("redis", "rediss", "unix")

_WRONG_URL: Final = (
    "The Redis URL cannot be read; it looks like redis://user:password@host:6379/0 or"
    " unix:///path?db=0, with signs like / in a password written as %2F."
)

_DATABASE: Final = re.compile(r"(/\d*)?")

_LANES: Final = 2
"""While the server works on one pipeline, the next one gathers and is written."""

_JOINED: Final = 256
"""Batches in one pipeline, at most: the first should not wait for the replies to thousands."""

LOST: Final = (faults.ConnectionError, faults.TimeoutError, faults.InvalidResponse, OSError)
"""What a server that is away, silent or talking nonsense looks like (a time-out is an OSError)."""

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


def pool_of(url: str, *, connections: int) -> ConnectionPool:
    """A pool that connects when it is first used. Raises ValueError for a wrong option."""
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=CALL_SECONDS,
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
    """Sends pipelines to one server, within the deadline and never to a foreign layout.

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
        self._is_greeted = False
        self._complaints: set[str] = set()  # logged since the server was last greeted

    async def exchange(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """The replies in order; a command that was refused has its `ResponseError` as reply.

        Raises StoreUnavailable when the server is away, slow, or of another layout.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if not self._is_greeted:
                    await self._greet()
                return await self._send(commands)
        except LOST as error:
            self._is_greeted = False
            self._complain(f"{type(error).__name__}: {error}")
            raise StoreUnavailable from error
        except faults.ResponseError as error:
            raise refusal(error, "the connection") from error
        except LayoutMismatch as error:
            self._complain(str(error))
            raise StoreUnavailable(_foreign_layout(error)) from error

    async def check_layout(self) -> None:
        """Raises LayoutMismatch, StoreMissing or StoreUnavailable if it cannot be used."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._greet()
        except LOST as error:
            raise StoreUnavailable from error

    async def greet_again(self) -> None:
        """For a server that has forgotten the scripts: it was restarted, or is another one."""
        self._is_greeted = False
        await self.exchange([])

    async def _greet(self) -> None:
        wanted, may_create = str(LAYOUT_VERSION).encode(), b"%d" % self._may_create
        source = SCRIPTS["stamp"].source.encode()
        (stamp,) = await self._send([(b"EVAL", source, b"1", self._stamp_key, wanted, may_create)])
        if isinstance(stamp, faults.ResponseError):
            raise refusal(stamp, "the layout stamp") from stamp
        if stamp is None:
            raise StoreMissing(self._place)
        if stamp != wanted:
            raise LayoutMismatch(self._place, str(stamp, errors="replace"))
        await self._send([(b"SCRIPT", b"LOAD", s.source.encode()) for s in self._scripts])
        self._is_greeted = True
        if self._complaints:
            log.info("store_back", store=self._place)
            self._complaints.clear()

    async def _send(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _reply(connection) for _ in commands]
        except BaseException:
            # What was not read would else be taken for the reply to a later command.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    def _complain(self, reason: str) -> None:
        """Logs each reason once until the server answers again."""
        if reason not in self._complaints:
            self._complaints.add(reason)
            log.warning("store_unavailable", store=self._place, reason=reason)


def _foreign_layout(mismatch: LayoutMismatch) -> str:
    """Its message for callers, who need not know where the store is."""
    return (
        f"The gateway's store has layout version {mismatch.found};"
        f" this gateway reads version {mismatch.wanted}."
    )


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except faults.ResponseError as error:
        return error


@dataclass(frozen=True, slots=True)
class _Batch:
    """One caller's commands, and where its replies go."""

    calls: Sequence[Call]
    replies: asyncio.Future[list[Any]]

    def is_wanted(self) -> bool:
        return not self.replies.done()

    def answer(self, replies: list[Any]) -> None:
        if self.is_wanted():
            self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        if self.is_wanted():
            self.replies.set_exception(error)


class Lanes:
    """Few pipelines under way at any time; whoever comes meanwhile travels with the next.

    Each caller has its own deadline and its own answers. One that gives up disturbs nobody: the
    pipeline is sent by a task that no caller owns.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: asyncio.Queue[_Batch] = asyncio.Queue()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The lanes work while this is entered; who still waits at the end is refused."""
        async with running("redis-lane", *(self._lane() for _ in range(_LANES))):
            yield
        while not self._waiting.empty():
            self._waiting.get_nowait().fail(StoreUnavailable())

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """The replies to one batch. Raises StoreUnavailable, after two seconds at the latest."""
        batch = _Batch(calls, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(batch)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await batch.replies
        except TimeoutError as error:
            raise StoreUnavailable from error

    async def _lane(self) -> None:
        while True:
            batches = [await self._waiting.get()]
            while len(batches) < _JOINED and not self._waiting.empty():
                batches.append(self._waiting.get_nowait())
            await self._serve([batch for batch in batches if batch.is_wanted()])

    async def _serve(self, batches: Sequence[_Batch]) -> None:
        """Answers every batch, whatever happens: a lane outlives all errors."""
        try:
            replies = iter(await self._run(batches))
        except StoreUnavailable as error:
            for batch in batches:
                batch.fail(StoreUnavailable(error.message))
        except Exception as error:  # noqa: BLE001 - a fault of ours goes to those whom it hit
            for batch in batches:
                batch.fail(error)
        else:
            for batch in batches:
                batch.answer([next(replies) for _ in batch.calls])
        finally:
            for batch in batches:  # those that a closing store leaves behind
                batch.fail(StoreUnavailable())

    async def _run(self, batches: Sequence[_Batch]) -> list[Any]:
        calls = [call for batch in batches for call in batch.calls]
        if not calls:
            return []
        replies = await self._link.exchange([call.command for call in calls])
        again = _to_repeat(batches, replies)
        if again:
            await self._link.greet_again()
            later = await self._link.exchange([calls[position].command for position in again])
            for position, reply in zip(again, later, strict=True):
                replies[position] = reply
        return replies


def _to_repeat(batches: Sequence[_Batch], replies: Sequence[Any]) -> list[int]:
    """Which calls to send again because the server had forgotten the scripts.

    Those that failed for it, and in the same batch the plain reads after the first of them: they
    were answered before what should have come before them.
    """
    again: list[int] = []
    position = 0
    for batch in batches:
        has_failed = False
        for call in batch.calls:
            is_unknown = isinstance(replies[position], faults.NoScriptError)
            has_failed = has_failed or is_unknown
            if is_unknown or (has_failed and call.script is None):
                again.append(position)
            position += 1
    return again
