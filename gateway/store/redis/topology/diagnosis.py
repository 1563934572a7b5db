"""Finds out why a connection could not use a server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from gateway.store.redis.faults import (
    NO_TLS,
    NOT_REDIS,
    OTHER_CODES,
    TLS,
    Fault,
    find_connection_fault,
)
from gateway.store.redis.topology.addresses import Connector

_GREETING_SECONDS: Final = 0.1

_LOOK_SECONDS: Final = 2.0
"""The timeout of each connection of `diagnose`."""


async def diagnose(
    connector: Connector, *, host: str, port: int, path: str | None = None
) -> Fault | None:
    """Why a connection could not use the server, if its error does not say it; None if unknown.

    A server that refuses a client closes the connection, and its reason may be lost. One that
    expects TLS, or no TLS, closes the connection or waits.
    """
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_LOOK_SECONDS):
            greeting = await _ask_in_plain_text(host, port, path)
        if greeting.startswith(b"-DENIED"):
            return Fault(OTHER_CODES["DENIED"], lasts=True)
        if greeting.startswith(b"-ERR max number of clients"):
            return Fault("has reached maxclients: raise it, or close other clients.")
        if connector.is_tls and greeting.startswith((b"+PONG", b"-NOAUTH", b"-LOADING", b"-ERR")):
            return Fault(NO_TLS, lasts=True)
        if not connector.is_tls and greeting and greeting[:1] not in b"+-":
            return Fault(NOT_REDIS, lasts=True)
    if path is not None:
        return None
    if connector.is_tls:
        return await _read_alert(connector, host, port)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_LOOK_SECONDS):
            await _shake_hands_over_tls(host, port)
        return Fault(TLS, lasts=True)
    return None


async def is_reachable(host: str, port: int) -> bool:
    """Whether a connection can be opened; nothing is sent."""
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def _ask_in_plain_text(host: str, port: int, path: str | None) -> bytes:
    if path is not None:
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection(host, port)
    try:
        # A server that refuses every client writes first. Its text could be lost if this wrote.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GREETING_SECONDS):
                return await reader.read(256)
        writer.write(b"PING\r\n")
        return await reader.read(256)
    finally:
        writer.close()


async def _read_alert(connector: Connector, host: str, port: int) -> Fault | None:
    """Why a server ends a connection after its handshake, as TLS 1.3 says it."""
    connection = connector.make_connection()
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=connection.ssl_context.get()
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


async def _shake_hands_over_tls(host: str, port: int) -> None:
    context = ssl.create_default_context()
    # Nothing is sent: this only finds out whether the server speaks TLS.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.close()
