"""One Redis server, whose name is resolved again at every connect.

After a failover the name leads to another server while sockets to the old one stay open. A name may
also have several addresses, of a master and its replicas: `client` takes the first that takes
writes, and pub/sub follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio.connection import AbstractConnection

from gateway.store.redis.faults import NOT_REDIS, OTHER_CODES, Fault, find_connection_fault
from gateway.store.redis.pools import create_pool
from gateway.store.redis.topology.addresses import Address, Connector
from gateway.store.redis.urls import redacted_url

_GREETING_SECONDS: Final = 0.1

_LOOK_SECONDS: Final = 2.0
"""The timeout of each connection of `diagnose`."""


class SingleServer:
    """`Addresses` of one URL. Raises `ValueError` for a URL that cannot be used."""

    is_elected = False

    def __init__(self, url: str) -> None:
        self.location = redacted_url(url)
        pool = create_pool(url)
        self._connector = Connector(pool)
        self.is_tls = self._connector.is_tls
        options = pool.connection_kwargs
        self.user = str(options.get("username") or "default")
        self._path: str | None = options.get("path")
        self._host = str(options.get("host") or "localhost")
        self._port = int(options.get("port") or 6379)
        self.current: Address | None = None
        self.on_replaced: list[Callable[[], None]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Nothing says that a name leads to another server: the next connect finds it."""
        yield

    async def resolve(self) -> Sequence[Address | None]:
        """The addresses now, in the resolver's order; `[None]` for a unix socket."""
        if self._path is not None:
            return [None]
        found = await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        )
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        return [Address(host, self._port) for host in hosts]

    async def connect(self, address: Address | None) -> AbstractConnection:
        """A connection with password and database. Raises redis-py's errors."""
        return await self._connector.connect(address, server_name=self._host)

    async def diagnose(self) -> Fault | None:
        """Looks at a server that a connection could not use, for a fault that it does not say.

        A server that refuses a client closes the connection, so that its reason may be lost. One
        that expects TLS, or does not, closes it or waits.
        """
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LOOK_SECONDS):
                greeting = await self._ask_in_plain_text()
            if greeting.startswith(b"-DENIED"):
                return Fault(OTHER_CODES["DENIED"], lasts=True)
            if greeting.startswith(b"-ERR max number of clients"):
                return Fault("has reached maxclients: raise it, or close other clients.")
            if self.is_tls and greeting.startswith((b"+PONG", b"-NOAUTH", b"-LOADING", b"-ERR")):
                return Fault("does not speak TLS: the URL should begin with redis://.", lasts=True)
            if not self.is_tls and greeting and greeting[:1] not in b"+-":
                return Fault(NOT_REDIS, lasts=True)
        if self._path is not None:
            return None
        if self.is_tls:
            return await self._read_alert()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._shake_hands_over_tls()
            return Fault("speaks TLS: the URL should begin with rediss://.", lasts=True)
        return None

    async def _ask_in_plain_text(self) -> bytes:
        if self._path is not None:
            reader, writer = await asyncio.open_unix_connection(self._path)
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            # A server that refuses every client speaks first. A write could lose that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GREETING_SECONDS):
                    return await reader.read(256)
            writer.write(b"PING\r\n")
            return await reader.read(256)
        finally:
            writer.close()

    async def _read_alert(self) -> Fault | None:
        """Why a server ends a connection after its handshake, as TLS 1.3 says it."""
        connection = self._connector.make_connection()
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=connection.ssl_context.get()
                )
                try:
                    # Nothing is written: otherwise the connection may be reset before the alert.
                    await reader.read(1)
                finally:
                    writer.close()
        except ssl.SSLError as error:
            return find_connection_fault(error, is_tls=True)
        except OSError:
            pass
        return None

    async def _shake_hands_over_tls(self) -> None:
        context = ssl.create_default_context()
        # Nothing is sent: this only finds out whether the server speaks TLS.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        writer.close()
