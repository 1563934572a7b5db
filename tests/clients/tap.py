"""Forwards a port to a gateway byte by byte, and keeps the requests that clients really send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from yarl import URL


@dataclass(frozen=True)
class Sent:
    """A request as a client sent it."""

    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: Any


@dataclass
class Tap:
    """The address for clients, and what passed."""

    url: str
    streams: list[bytearray] = field(default_factory=list)
    """What each connection has sent."""

    def requests(self, prompt: str) -> list[Sent]:
        """The image requests with this prompt, as far as they are complete."""
        found = [sent for stream in self.streams for sent in read_requests(bytes(stream))]
        return [sent for sent in found if (sent.body or {}).get("prompt") == prompt]


def read_requests(stream: bytes) -> list[Sent]:
    """The requests of one connection. Clients send bodies with a length."""
    found = []
    while b"\r\n\r\n" in stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        assert "transfer-encoding" not in headers, first
        length = int(headers.get("content-length", 0))
        body, stream = rest[:length], rest[length:]
        found.append(Sent(first.split(" ")[1], headers, json.loads(body) if body else None))
    return found


@asynccontextmanager
async def run_tap(gateway: str) -> AsyncIterator[Tap]:
    """Listens on a free port, and forwards to the gateway's address."""
    target = URL(gateway)
    tap = Tap("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = bytearray()
        tap.streams.append(stream)
        inner_reader, inner_writer = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(
            _forward(reader, inner_writer, stream), _forward(inner_reader, writer, bytearray())
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    tap.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.close()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            copy += data
            writer.write(data)
            await writer.drain()
    writer.close()
