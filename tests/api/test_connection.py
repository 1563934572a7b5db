"""A fault in a handler: one response on the connection, never parts of two."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from gateway.api.http.server import Runner
from gateway.errors import InternalError
from tests.waiting import generous

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
FAULTS = [RuntimeError("a fault"), TimeoutError("a fault")]


async def receive_all(app: web.Application) -> bytes:
    """All bytes that the server sends for one request until it closes the connection."""
    runner = Runner(app, head_seconds=60)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(REQUEST)
        async with generous():
            received = await reader.read()
        writer.close()
    finally:
        await runner.cleanup()
    return received


@pytest.mark.parametrize("fault", [*FAULTS, InternalError()], ids=repr)
async def test_a_fault_after_the_response_has_begun_cuts_it_off(
    fault: Exception,
) -> None:
    async def fail_late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise fault

    app = web.Application()
    app.router.add_get("/", fail_late)

    received = await receive_all(app)

    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(
        b"\r\n\r\n4\r\nhalf\r\n"
    )  # without the last chunk, a client detects the cut


async def test_a_fault_before_the_response_has_begun_gives_a_json_error() -> None:
    async def fail(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("a fault")

    app = web.Application()
    app.router.add_get("/", fail)

    received = await receive_all(app)

    assert received.startswith(b"HTTP/1.1 500 Internal Server Error")
    assert b'"type": "server_error"' in received
    assert b"a fault" not in received
