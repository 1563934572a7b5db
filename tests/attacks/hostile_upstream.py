"""An upstream that answers honestly, unless the prompt names an attack: `hostile NAME …`.

Raw sockets, so that any bytes can be sent at any time. Runs as its own process:

    python -m tests.attacks.hostile_upstream PORT
"""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import uvloop
from PIL import Image

from tests.pngs import write_png

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
    "output_tokens": 272,
    "total_tokens": 281,
}
LARGE_EDGE = 4096
"""Pixels of an edge of the image for `hostile large`: 16.8 megapixels, to be transcoded."""

CHUNK = 64 * 1024

LOW_PRIORITY = 19
"""It floods the gateway from the same machine, and must not win by taking its processor."""

Attack = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


def respond(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    """A complete JSON response."""
    start = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*start, *lines, "", ""]).encode() + body


def image(seed: str) -> bytes:
    """A valid answer with one image of 2 KB, a different one for each seed."""
    return answer([{"b64_json": _png(seed)}])


def answer(elements: list[dict[str, str]]) -> bytes:
    """A valid body with these elements."""
    return json.dumps({"created": 1, "data": elements, "usage": USAGE}).encode()


def _png(seed: str) -> str:
    return base64.b64encode(write_png(1024, 1024, random.Random(seed).randbytes(2_000))).decode()


# ── attacks ─────────────────────────────────────────────────────────────────────────────────


async def two_answers(writer: asyncio.StreamWriter, prompt: bytes) -> None:
    """One more complete answer behind the right one."""
    writer.write(respond(image(prompt.decode())) + respond(image("unsolicited")))


async def a_late_answer(writer: asyncio.StreamWriter, prompt: bytes) -> None:
    """One more complete answer, on the idle connection."""
    writer.write(respond(image(prompt.decode())))
    await asyncio.sleep(0.2)
    writer.write(respond(image("unsolicited")))


async def many_links(writer: asyncio.StreamWriter, _: bytes) -> None:
    """3,000 links for one image."""
    writer.write(respond(answer([{"url": f"https://127.0.0.2/{n}"} for n in range(3000)])))


async def many_elements(writer: asyncio.StreamWriter, _: bytes) -> None:
    """8 MB of empty elements."""
    writer.write(respond(b'{"created":1,"data":[' + b"{}," * 2_700_000 + b"{}]}"))


async def many_images(writer: asyncio.StreamWriter, prompt: bytes) -> None:
    """Eight images for one."""
    pngs = [{"b64_json": _png(f"{prompt.decode()} {n}")} for n in range(8)]
    writer.write(respond(answer(pngs)))


async def a_quoted_key(writer: asyncio.StreamWriter, prompt: bytes) -> None:
    """The gateway's own key, spelled with JSON escapes, in a revised prompt."""
    element = {"b64_json": _png(prompt.decode()), "revised_prompt": "KEY"}
    key = "".join(f"\\u{ord(c):04x}" for c in "sk-upstream-secret")
    writer.write(respond(answer([element]).replace(b"KEY", key.encode())))


def endless(piece: bytes, *, head: bytes) -> Attack:
    """Sends a piece again and again until the gateway closes the connection."""

    async def play(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(head)
        while True:
            writer.write(piece * (CHUNK // len(piece)))
            await writer.drain()

    return play


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"

ATTACKS: dict[str, Attack] = {
    "two-answers": two_answers,
    "a-late-answer": a_late_answer,
    "many-links": many_links,
    "many-elements": many_elements,
    "many-images": many_images,
    "a-quoted-key": a_quoted_key,
    "endless-events": endless(b"data: x\n\n", head=STREAM),
    "endless-comments": endless(b": x\n\n", head=STREAM),
    "endless-lines": endless(b"\n", head=STREAM),
    "endless-interim": endless(b"HTTP/1.1 103 Early Hints\r\n\r\n", head=b""),
    "endless-headers": endless(b"X-A: b\r\n", head=b"HTTP/1.1 200 OK\r\n"),
    "endless-space": endless(b" ", head=JSON),
}


# ── the server ──────────────────────────────────────────────────────────────────────────────


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(_values(head, b"content-length"), b"0"))
            body = json.loads(await reader.readexactly(length))
            prompt: str = body["prompt"]
            words = prompt.split()
            if words[0] == "hostile":
                await ATTACKS[words[1]](writer, prompt.encode())
            elif words[0] == "large":
                writer.write(respond(answer([{"b64_json": _large_png()}])))
            else:
                await asyncio.sleep(0.5 if words[0] == "slow" else 0)
                writer.write(respond(image(prompt)))
            await writer.drain()
    writer.transport.abort()


def _values(head: bytes, name: bytes) -> Iterator[bytes]:
    for line in head.split(b"\r\n"):
        found, _, value = line.partition(b":")
        if found.lower() == name:
            yield value.strip()


@functools.cache
def _large_png() -> str:
    """A valid image of `LARGE_EDGE` squared pixels in few bytes."""
    with io.BytesIO() as file:
        Image.new("RGB", (LARGE_EDGE, LARGE_EDGE), "teal").save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


async def _run(port: int) -> None:
    _large_png()  # it takes a second, during which nothing could be answered
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    os.nice(LOW_PRIORITY)
    uvloop.run(_run(int(sys.argv[1])))
