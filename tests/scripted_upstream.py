"""Raw servers that send scripted bytes, and an upstream client for them."""

import asyncio
import base64
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.images import ImageRequest
from gateway.upstream.client import open_client
from gateway.upstream.observer import Pace
from gateway.upstream.session import ClientSettings

KEY = "sk-secret-of-the-team"
PIXELS = b"image bytes"
REQUEST = ImageRequest(model="painter", prompt="otter", user="ann")

Reply = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: bytes, **headers: str) -> bytes:
    """A complete HTTP response; header names have `_` for `-`."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def images(*elements: bytes, **fields: object) -> bytes:
    data = [{"b64_json": base64.b64encode(element).decode()} for element in elements]
    return json.dumps({"data": data} | fields).encode()


def error(status: int, code: str | None = None, **headers: str) -> bytes:
    body = json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": code}})
    return http(status, body.encode(), Content_Type="application/json", **headers)


GOOD = http(200, images(PIXELS), x_request_id="req_up")


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def then(first: bytes, end: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Reply:
    """A reply that sends `first` and then ends with `end`."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(0.02)
        await end(writer)

    return play


@dataclass
class Upstream:
    """A raw server that sends its replies in order, and repeats the last one."""

    replies: list[Reply]
    greeting: bytes = b""
    """Sent when a client connects."""
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    tasks: set = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            writer.write(self.greeting)
            while not writer.is_closing():
                await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        _, _, length = head.lower().partition("content-length: ")
        self.bodies.append(await reader.readexactly(int(length.split("\r\n")[0] or 0)))
        self.heads.append(head)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, bytes):
            writer.write(reply)
            await writer.drain()
            return
        await reply(writer)


@contextlib.asynccontextmanager
async def upstream(*replies: Reply):
    script = Upstream(list(replies))
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield script
    finally:
        server.close()
        for task in script.tasks:
            task.cancel()
        await asyncio.gather(*script.tasks, return_exceptions=True)


@dataclass
class Clock:
    """A clock that only `sleep` moves, and randomness that is always 0."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    @property
    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now, sleep=self.sleep, random=lambda: 0.0)


@dataclass
class Notes:
    """An observer that records its calls."""

    attempts: list[tuple[str, int | str]] = field(default_factory=list)
    retries: int = 0
    waiting: list[int] = field(default_factory=list)
    waits_seconds: list[float] = field(default_factory=list)
    turns: list[bool] = field(default_factory=list)

    def attempted(self, model: str, *, status: int | str, seconds: float) -> None:
        assert seconds >= 0
        self.attempts.append((model, status))

    def retried(self) -> None:
        self.retries += 1

    def failed_over(self) -> None:
        pass

    def waits(self, more: int) -> None:
        self.waiting.append(more)

    def waited(self, seconds: float) -> None:
        self.waits_seconds.append(seconds)

    def breaker_turned(self, *, is_open: bool) -> None:
        self.turns.append(is_open)


@contextlib.asynccontextmanager
async def client_of(script: Upstream, *, pace=None, notes=None, **settings: object):
    settings = {"base_url": script.url, "api_key": KEY} | settings
    async with open_client(
        ClientSettings.model_validate(settings), observer=notes, pace=pace or Clock().pace
    ) as client:
        yield client
