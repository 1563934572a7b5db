"""An upstream that lets everybody wait until it is told to answer, and then answers all at once.

Every answer holds an image of its own. Run as a process of its own:

    python -m tests.bench.holding PORT ANSWER_FILE

`GET /held` says how many requests wait, `PUT /release` lets them go.
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
"""Of a PNG: signature and IHDR. A multiple of three: it ends where a digit of base64 does."""


def different(answer: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The answer with another image each time, in three parts, of which two are always the same.

    The image is a PNG; a comment of 36 bytes behind its head makes it another one.
    """
    cut = answer.index(_MARK) + len(_MARK) + _HEAD_BYTES // 3 * 4
    head, tail = answer[:cut], answer[cut:]
    for number in count():
        yield head, pybase64.b64encode(_comment(number)), tail


def _comment(number: int) -> bytes:
    data = b"tEXtComment\0%016d" % number
    return (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")


class Gate:
    """Where requests wait."""

    def __init__(self) -> None:
        self.held = 0
        self._opened = asyncio.Event()

    async def wait(self) -> None:
        """Until the gate is opened the next time."""
        self.held += 1
        await self._opened.wait()
        self.held -= 1

    def open(self) -> None:
        """Lets everybody go; whoever comes from now on waits again."""
        self._opened.set()
        self._opened = asyncio.Event()


def create_app(answer: bytes) -> web.Application:
    """Answers every POST, when it is told to."""
    gate, answers = Gate(), different(answer)

    async def generate(request: web.Request) -> web.StreamResponse:
        await request.read()
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
    """Serves until it is terminated."""
    port, answer_file = sys.argv[1:]
    raise_descriptor_limit()
    os.nice(LOW_PRIORITY)
    app = create_app(Path(answer_file).read_bytes())
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
