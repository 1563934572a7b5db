"""Which connections a worker takes, and the answer that the others get.

A refused connection costs no parser and no task: its first bytes are answered, whatever they are.
With TLS it is closed without an answer, before its handshake.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, cast

import orjson

from gateway.api.access_log import log_unread
from gateway.api.cors import Cors
from gateway.api.exchange import SERVER
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError
from gateway.ids import new_request_id
from gateway.net.client_address import TrustedProxies, network_of

Reason = Literal["connections", "address"]

RETRY_SECONDS: Final = 1

LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused request is read and dropped, because closing a connection with
unread bytes resets it, and a reset can overtake the answer."""

FIRST_BYTES_SECONDS: Final = 5.0
"""How long a refused client may take to begin its request, which is then answered."""

MAX_REFUSED: Final = 1024
"""Refused connections that are open at once. Beyond it, they are reset without an answer."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The bounds of one worker's connections."""

    max_head_bytes: int = 64 << 10
    max_body_memory_bytes: int = 256 << 20
    """Of the bodies that are held at the same time."""
    max_connections: int = 16_384
    max_per_address: int = 0
    """0: as many as of all addresses together."""
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    """Their addresses stand for many clients, and are not counted."""


def overloaded(message: str) -> GatewayError:
    """The 503 of a request beyond a bound of the worker."""
    return GatewayError(
        message, code=ErrorCode.OVERLOADED, headers={"Retry-After": str(RETRY_SECONDS)}
    )


def _too_many_connections() -> GatewayError:
    return overloaded("This worker has no connection left. Please try again.")


def _too_many_of_address() -> GatewayError:
    return GatewayError(
        "Your address has too many open connections to this gateway. Please use fewer.",
        type=INVALID_REQUEST,
        code=ErrorCode.TOO_MANY_OPEN,
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


class OpenConnections:
    """Counts the open connections of a worker, in all and of each address."""

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        on_refused: Callable[[Reason], None] = lambda reason: None,
        cors: Cors | None = None,
    ) -> None:
        self._limits = limits
        self._cors = cors or Cors()
        self._on_refused = on_refused
        self._open = 0
        self._by_address: Counter[str] = Counter()
        self._refused: set[RefusedConnection] = set()

    def accept(self, transport: asyncio.Transport, *, speaks_tls: bool = False) -> str | None:
        """Counts a new connection, by the returned address; None if it was refused.

        With TLS it is closed without an answer, which would need a handshake.
        """
        address = self._counted_address(transport)
        if self._open >= self._limits.max_connections:
            self._refuse(transport, "connections", is_answered=not speaks_tls)
            return None
        if address and self._by_address[address] >= self._limits.max_per_address:
            self._refuse(transport, "address", is_answered=not speaks_tls)
            return None
        self._open += 1
        if address:
            self._by_address[address] += 1
        return address

    def release(self, address: str) -> None:
        """The end of a connection that was accepted."""
        self._open -= 1
        if address:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def close(self) -> None:
        """Ends the refused connections."""
        for connection in list(self._refused):
            connection.abort()

    def _counted_address(self, transport: asyncio.Transport) -> str:
        """The client's address or IPv6 network; empty if it is not counted."""
        peer = transport.get_extra_info("peername")
        if not self._limits.max_per_address or not isinstance(peer, tuple):
            return ""
        address, is_proxy = self._limits.proxies.read_peer(peer[0])
        return "" if is_proxy else network_of(address)

    def _refuse(self, transport: asyncio.Transport, reason: Reason, *, is_answered: bool) -> None:
        self._on_refused(reason)
        if not is_answered or len(self._refused) >= MAX_REFUSED:
            transport.abort()
            return
        error = _too_many_connections() if reason == "connections" else _too_many_of_address()
        refused = RefusedConnection(error, self._refused, self._cors)
        transport.set_protocol(refused)
        refused.connection_made(transport)


class RefusedConnection(asyncio.Protocol):
    """Answers the first bytes of a connection with an error, and closes it.

    `GET /healthz` gets its 200 all the same: a supervisor that restarts a busy worker makes it
    busier.
    """

    def __init__(self, error: GatewayError, refused: set[RefusedConnection], cors: Cors) -> None:
        self._error = error
        self._refused = refused
        self._cors = cors
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the request: some clients drop an answer that comes before it."""
        self._transport = cast(asyncio.Transport, transport)
        self._refused.add(self)
        self._expect(FIRST_BYTES_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Answers the first bytes, and drops the others."""
        if self._is_answered or self._transport is None:
            return
        self._is_answered = True
        is_health = data.startswith((b"GET /healthz ", b"HEAD /healthz "))
        if is_health:
            answer = _healthy()
        else:
            self._cors.add_to_unread(data, self._error.headers)
            request_id = new_request_id()
            log_unread(request_id, peer_address(self._transport), self._error)
            answer = render_error(self._error, request_id)
        if data.startswith(b"HEAD "):
            answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        self._transport.write(answer)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expect(LINGER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._refused.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Closes the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _expect(self, seconds: float) -> None:
        """Closes the connection unless the client does so within this time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The address of a connection's other end, for the log; empty if it has none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


def render_error(error: GatewayError, request_id: str) -> bytes:
    """The bytes of a whole response, for a connection without a request."""
    return _render(
        error.status,
        orjson.dumps(error.body),
        error.headers | {"x-gateway-error-source": "gateway"},
        request_id=request_id,
    )


def _healthy() -> bytes:
    """What `/healthz` answers."""
    headers = {"Cache-Control": "no-store"}
    return _render(200, b'{"status":"ok"}', headers, request_id=new_request_id())


def _render(status: int, body: bytes, headers: dict[str, str], *, request_id: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Server: {SERVER}",
        f"x-request-id: {request_id}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
