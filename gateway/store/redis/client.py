"""One Redis server: connecting, the handshake, scripts, and errors.

This is the one place where redis-py's errors become `StoreUnavailable` and `StoreFull`. Pipelining
is `connection`, notifications are `pubsub`, and the commands of the store are `commands`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import structlog
from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.redis.commands.encoding import RedisCommand
from gateway.store.redis.connection import PipelinedConnection, RawCommand
from gateway.store.redis.scripts import SCRIPTS, Script

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS: Final = 2.0
"""For a batch of commands, connecting included (docs/reference/cache.md#store-unavailable)."""

SCHEMES: Final = ("redis", "rediss", "unix")

CONNECTION_ERRORS: Final = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.InvalidResponse,
    OSError,  # includes asyncio's TimeoutError
)
"""The server is unavailable, silent, or does not speak Redis' protocol."""

_EXECUTE_ERRORS: Final = (*CONNECTION_ERRORS, redis_errors.ResponseError, SchemaMismatch)

_UNAVAILABLE_ERRORS: Final = (
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)

_UNAVAILABLE_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "READONLY")
"""Codes without a class in redis-py, or that lose it when a script receives them."""

_INVALID_URL: Final = (
    "The Redis URL cannot be read; it looks like redis://user:password@host:6379/0 or"
    " unix:///path?db=0, with signs like / in a password written as %2F."
)

_DRIVER_INFO: Final = DriverInfo()
"""What Redis' `CLIENT LIST` shows."""

_DATABASE_PATH: Final = re.compile(r"(/\d*)?")


def redacted_url(url: str) -> str:
    """A Redis URL without user, password and options.

    Raises `ValueError` for a URL that is invalid or not supported; its message never quotes the
    URL.
    """
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "redis+cluster"):
        raise ValueError(f"{scheme}:// is not supported yet; use redis://, rediss:// or unix://.")
    if scheme not in SCHEMES:
        raise ValueError("A Redis URL begins with redis://, rediss:// or unix://.")
    parts = urlsplit(url)
    if not _is_complete(parts):
        raise ValueError(_INVALID_URL)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_complete(parts: SplitResult) -> bool:
    if parts.scheme == "unix":
        return bool(parts.path)
    try:
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    # A password with a bare `/`, `?` or `#` ends the host early, so the rest is no database.
    return bool(parts.hostname) and has_valid_port and bool(_DATABASE_PATH.fullmatch(parts.path))


def create_pool(url: str) -> ConnectionPool:
    """A factory of connections; it keeps none. Raises `ValueError` for an invalid option."""
    try:
        return ConnectionPool.from_url(
            url,
            # redis-py would put `wait_for` around every write, which on Python 3.11 can swallow a
            # cancellation. Each use of a connection has one deadline around all of it instead.
            socket_timeout=None,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # Retries inside redis-py would use up the one deadline of the batch.
            retry=Retry(NoBackoff(), 0),
            # RESP3 would return the reply of HGETALL as a map, which `encoding.pairs` does not
            # read.
            protocol=2,
            # Otherwise each attempt to connect reads redis-py's version from the files of its
            # package, and leaves the collector 30 objects.
            driver_info=_DRIVER_INFO,
            decode_responses=False,
        )
    except ValueError:
        raise ValueError(_INVALID_URL) from None


def translate_reply(error: redis_errors.ResponseError, command: str) -> Exception:
    """An error reply as `StoreFull`, `StoreUnavailable`, or `RuntimeError` for a bug of ours."""
    code = str(error).split(" ", 1)[0]
    if isinstance(error, redis_errors.OutOfMemoryError) or code == "OOM":
        return StoreFull()
    if isinstance(error, _UNAVAILABLE_ERRORS) or code in _UNAVAILABLE_CODES:
        return StoreUnavailable()
    return RuntimeError(f"Redis refused {command}: {error}")


class RedisClient:
    """Executes commands on one server, connecting when necessary.

    After every connect it checks or sets the server's schema version and loads `scripts`, because
    the server may have been replaced meanwhile. Nothing else is sent to a server of another schema
    version. `location` is for messages.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        location: str,
        *,
        schema_key: str,
        scripts: Sequence[Script] = (),
        may_create: bool = True,
    ) -> None:
        self._pool = pool
        self._location = location
        self._schema_key = schema_key.encode()
        self._scripts = scripts
        self._may_create = may_create
        self._connection: AbstractConnection | None = None
        self._pipeline: PipelinedConnection | None = None
        self._connecting = asyncio.Lock()
        self._handshakes = 0
        self._is_closed = False
        self._logged_reasons: set[str] = set()  # since the last handshake

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects at the first use; on exit, pending requests fail with `StoreUnavailable`."""
        try:
            yield
        finally:
            self._is_closed = True
            await self._disconnect()

    async def execute(self, commands: Sequence[RawCommand]) -> list[Any]:
        """The replies in order; a command that Redis refuses has a `ResponseError` as its reply.

        Raises `StoreUnavailable` if the server is unavailable, too slow, or of another schema
        version.
        """
        deadline = _deadline()
        try:
            pipeline = await self._ready_pipeline(deadline)
            return await pipeline.execute(commands, deadline=deadline)
        except _EXECUTE_ERRORS as error:
            raise self._translate(error) from error

    async def run(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `execute`; loads the scripts again if a restarted server has lost them."""
        deadline, handshakes = _deadline(), self._handshakes
        try:
            pipeline = await self._ready_pipeline(deadline)
            replies = await pipeline.execute([c.command for c in commands], deadline=deadline)
            if repeats := _find_repeats(commands, replies):
                pipeline = await self._ready_pipeline(deadline, handshakes=handshakes + 1)
                repeated = await pipeline.execute(
                    [commands[i].command for i in repeats], deadline=deadline
                )
                for i, reply in zip(repeats, repeated, strict=True):
                    replies[i] = reply
        except _EXECUTE_ERRORS as error:
            raise self._translate(error) from error
        return replies

    async def check_schema(self) -> None:
        """Raises `SchemaMismatch`, `StoreMissing` or `StoreUnavailable` if it cannot be used."""
        try:
            await self._ready_pipeline(_deadline())
        except CONNECTION_ERRORS as error:
            raise StoreUnavailable from error

    async def _ready_pipeline(self, deadline: float, *, handshakes: int = 1) -> PipelinedConnection:
        """The open connection; `handshakes` is the least number of them that this client has done.

        Requests that find the scripts lost at the same time share one further handshake.
        """
        pipeline = self._pipeline
        if pipeline is not None and pipeline.is_open and self._handshakes >= handshakes:
            return pipeline
        # One request connects. The others wait for it, each until its own deadline.
        async with asyncio.timeout_at(deadline), self._connecting:
            if self._pipeline is None or not self._pipeline.is_open:
                self._pipeline = await self._connect(deadline)
            elif self._handshakes < handshakes:
                await self._shake_hands(self._pipeline, deadline)
            return self._pipeline

    async def _connect(self, deadline: float) -> PipelinedConnection:
        await self._disconnect()
        # A task that is still running must not reconnect.
        if self._is_closed:
            raise redis_errors.ConnectionError("the store is closed")
        self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await self._connection.connect()
        pipeline = PipelinedConnection(self._connection)
        await self._shake_hands(pipeline, deadline)
        return pipeline

    async def _disconnect(self) -> None:
        if self._pipeline is not None:
            self._pipeline.abort(redis_errors.ConnectionError("the connection is closed"))
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def _shake_hands(self, pipeline: PipelinedConnection, deadline: float) -> None:
        source, version = SCRIPTS["handshake"].source, str(SCHEMA_VERSION).encode()
        handshake = (b"EVAL", source, b"1", self._schema_key, version, b"%d" % self._may_create)
        (found,) = await pipeline.execute([handshake], deadline=deadline)
        if isinstance(found, redis_errors.ResponseError):
            raise translate_reply(found, "the handshake") from found
        if found is None:
            raise StoreMissing(self._location)
        if found != version:
            raise SchemaMismatch(self._location, str(found, errors="replace"))
        loads = [(b"SCRIPT", b"LOAD", script.source) for script in self._scripts]
        await pipeline.execute(loads, deadline=deadline)
        self._handshakes += 1
        if self._logged_reasons:
            log.info("store_available", store=self._location)
            self._logged_reasons.clear()

    def _translate(self, error: Exception) -> Exception:
        if isinstance(error, SchemaMismatch):
            self._log_once(str(error))
            # Clients see this message; it does not name the store's location.
            return StoreUnavailable(
                f"The gateway's store has schema version {error.found};"
                f" this gateway reads version {error.supported}."
            )
        if isinstance(error, redis_errors.ResponseError):
            return translate_reply(error, "the connection")
        self._log_once(f"{type(error).__name__}: {error}")
        return StoreUnavailable()

    def _log_once(self, reason: str) -> None:
        """Logs each reason once per outage."""
        if reason not in self._logged_reasons:
            self._logged_reasons.add(reason)
            log.warning("store_unavailable", store=self._location, reason=reason)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_SECONDS


def _find_repeats(commands: Sequence[RedisCommand], replies: Sequence[Any]) -> list[int]:
    """The indexes of commands to send again because the server has lost the scripts.

    These are the scripts that failed for it, and the plain reads after the first of them: they
    were executed before the commands that precede them.
    """
    repeats: list[int] = []
    for i, (command, reply) in enumerate(zip(commands, replies, strict=True)):
        is_lost = isinstance(reply, redis_errors.NoScriptError)
        if is_lost or (repeats and command.script is None):
            repeats.append(i)
    return repeats
