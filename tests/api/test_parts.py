"""Very large bodies leave in parts, each in its own turn of the event loop."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.http import parts
from gateway.api.http.parts import PART_BYTES, in_parts
from gateway.api.http.server import Runner
from gateway.api.http.whole import WholeResponse
from tests.waiting import generous


@given(pieces=st.lists(st.binary(max_size=50), max_size=6), size=st.integers(1, 60))
def test_parts_have_the_bytes_of_the_pieces_in_their_order(pieces: list[bytes], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", size)
        found = [b"".join(part) for part in in_parts(pieces)]
    assert b"".join(found) == b"".join(pieces)
    assert all(len(part) == size for part in found[:-1])
    assert all(0 < len(part) <= size for part in found[-1:])


async def test_clients_of_very_large_answers_get_all_of_them() -> None:
    """Three at once, one of which disconnects within its answer."""
    body = bytes(range(256)) * (3 * PART_BYTES // 256)

    async def answer(_: web.Request) -> web.StreamResponse:
        return WholeResponse([b"first", body, b"last"], content_type="image/png")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, head_seconds=60)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def read(*, disconnects: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        if disconnects:
            await reader.readexactly(PART_BYTES)
            writer.transport.abort()
            return b""
        received = await reader.read()
        writer.close()
        return received.partition(b"\r\n\r\n")[2]

    async with generous():
        whole, again, _ = await asyncio.gather(read(), read(), read(disconnects=True))
    assert whole == again == b"first" + body + b"last"
    await runner.cleanup()
