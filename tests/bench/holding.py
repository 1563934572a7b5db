"""An upstream that holds all requests until they are released, and then answers them all at once.

Each answer has a different image. Runs as its own process:

    python -m tests.bench.holding PORT ANSWER_FILE [open]

With `open` it holds none: each is answered at once.
`GET /held` returns how many requests are held, `PUT /release` releases them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pybase64
import uvloop
from aiohttp import web

from tests.bench.processes import LOW_PRIORITY, raise_descriptor_limit

BACKLOG = 4096
_MARK = b'"b64_json":"'
_HEAD_BYTES = 33
"""A PNG's signature and IHDR. A multiple of three, so that its base64 can be cut there."""


def distinct_answers(answer: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The answer with a different image each time, in three parts; only the second part changes.

    The image is a PNG. A comment of 36 bytes after its head makes it different.
    """
    cut = answer.index(_MARK) + len(_MARK) + _HEAD_BYTES // 3 * 4
    head, tail = answer[:cut], answer[cut:]
    for number in count():
        yield head, pybase64.b64encode(_comment(number)), tail


def _comment(number: int) -> bytes:
    data = b"tEXtComment\0%016d" % number
    return (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")


class Gate:
    """Holds requests."""

    def __init__(self) -> None:
        self.held = 0
        self._opened = asyncio.Event()

    async def wait(self) -> None:
        """Waits until the gate is opened the next time."""
        self.held += 1
        await self._opened.wait()
        self.held -= 1

    def open(self) -> None:
        """Releases the requests that wait. Later ones wait for the next call."""
        self._opened.set()
        self._opened = asyncio.Event()


def create_app(answer: bytes, *, holds: bool = True) -> web.Application:
    """Answers every POST, with `holds` once it is released."""
    gate, answers = Gate(), distinct_answers(answer)

    async def generate(request: web.Request) -> web.StreamResponse:
        await request.read()
        if holds:
            await gate.wait()
        parts = next(answers)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = sum(map(len, parts))
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def count_held(_: web.Request) -> web.Response:
        return web.json_response(gate.held)

    async def release(_: web.Request) -> web.Response:
        gate.open()
        return web.Response()

    app = web.Application()
    app.router.add_get("/held", count_held)
    app.router.add_put("/release", release)
    app.router.add_post("/{any:.*}", generate)
    return app


def main() -> None:
    """Serves until the process is terminated."""
    port, answer_file, *is_open = sys.argv[1:]
    raise_descriptor_limit()
    os.nice(LOW_PRIORITY)
    app = create_app(Path(answer_file).read_bytes(), holds=not is_open)
    loop = uvloop.new_event_loop()
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        print=None,
        loop=loop,
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    main()
