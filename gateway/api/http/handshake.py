"""The TLS handshake of a client, which is counted as a connection from its start on.

asyncio reports a connection with TLS when its handshake is finished, and one whose handshake fails
never. So the gateway accepts TCP, and then starts TLS on it.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast

from gateway.errors import detach

HANDSHAKE_SECONDS: Final = 10.0
"""A client that has not finished the handshake by then is disconnected."""

SHUTDOWN_SECONDS: Final = 2.0
"""How long a closing connection waits for the client's half of TLS' own ending."""


class Handshake(asyncio.Protocol):
    """Receives what comes before there is a protocol for it, first over TCP, then over TLS.

    uvloop reads from a new connection before TLS can be started on it. And TLS passes on what came
    with the end of the handshake before `start_tls` returns.
    """

    def __init__(self) -> None:
        self._early = b""

    def data_received(self, data: bytes) -> None:
        """Keeps it: a part of the handshake, or of the first request."""
        self._early += data

    def take_early(self) -> bytes:
        """What was received since the last call."""
        early, self._early = self._early, b""
        return early

    async def finish(
        self, transport: asyncio.Transport, context: ssl.SSLContext
    ) -> asyncio.Transport | None:
        """The connection with TLS, whose protocol is still this one; None if it has ended."""
        if transport.is_closing():  # TLS would not be told
            return None
        loop = asyncio.get_running_loop()
        # Runs when `start_tls` has set TLS' protocol, but before it starts, as it was called first.
        loop.call_soon(self._pass_on, transport)
        try:
            stream = await loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except OSError as error:  # so are all errors of TLS
            detach(error)
            return None
        # A lost connection is reported to this protocol, or not at all. While it is not lost, it
        # will be to the next one.
        return None if transport.is_closing() else stream

    def _pass_on(self, transport: asyncio.Transport) -> None:
        tls, early = cast(asyncio.BufferedProtocol, transport.get_protocol()), self.take_early()
        while early:
            buffer = memoryview(tls.get_buffer(len(early)))
            part = early[: len(buffer)]
            buffer[: len(part)] = part
            tls.buffer_updated(len(part))
            early = early[len(part) :]
