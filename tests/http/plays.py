"""An upstream that answers by script: each prompt has its answers, and each answer its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateways import InProcess, make_settings, run_gateway

PAGE = b"<html><h1>Bad gateway</h1></html>"

END = "end"
CUT = "cut"
STALL = "stall"


@dataclass(frozen=True)
class Play:
    """An answer of upstream, and how it ends."""

    status: int
    body: bytes
    kind: str = "application/json"
    end: str = END
    length: int | None = None

    @property
    def head(self) -> bytes:
        kind = f"Content-Type: {self.kind}\r\n" if self.kind else ""
        length = len(self.body) if self.length is None else self.length
        if self.end != END:
            length = max(length, len(self.body) + 1000)
        framing = f"Content-Length: {length}\r\n" if length >= 0 else ""
        return f"HTTP/1.1 {self.status} X\r\n{kind}{framing}Connection: close\r\n\r\n".encode()


def doc(status: int = 200, /, *, end: str = END, cut: int = 0, **fields: Any) -> Play:
    body = json.dumps(fields).encode()
    return Play(status, body[: len(body) - cut], end=end)


def html(status: int, *, end: str = END) -> Play:
    return Play(status, PAGE, kind="text/html", end=end)


def events(*data: Mapping[str, Any], end: str = END) -> Play:
    body = b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in data
    )
    return Play(200, body, kind="text/event-stream", end=end)


def partial(**fields: Any) -> dict[str, Any]:
    kind = "image_generation.partial_image"
    return {"type": kind, "partial_image_index": 0, **fields}


def completed(**fields: Any) -> dict[str, Any]:
    return {"type": "image_generation.completed", **fields}


def failed(error: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "error", "error": error, **fields}


class Script:
    """An upstream that plays the answers of a prompt in turn."""

    def __init__(self) -> None:
        self.plays: dict[str, list[Play]] = {}
        self.closing = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        prompt = json.loads(await reader.readexactly(length))["prompt"]
        play = self.plays[prompt].pop(0)
        writer.write(play.head + play.body)
        await writer.drain()
        if play.end == STALL:
            await self.closing.wait()
        writer.close()


@asynccontextmanager
async def house(folder: Path, store_url: str | None) -> AsyncIterator[tuple[InProcess, Script]]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    upstream = {"timeout": "5s", "breaker": {"failures": 0}}
    try:
        async with run_gateway(make_settings(folder, url, store_url, upstream=upstream)) as gateway:
            gateway.stop_time()  # retries do not wait
            yield gateway, script
    finally:
        script.closing.set()
        server.close()
