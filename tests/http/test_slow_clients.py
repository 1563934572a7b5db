"""Slow clients of streams delay no other client, cost no memory, and must not stop reading."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from gateway.api.http import sending
from tests.gateways import (
    USUAL,
    Client,
    InProcess,
    Processes,
    let_pass,
    make_settings,
    needs_asyncio_that_pauses,
    run_gateway,
    run_processes,
)
from tests.http.test_bounds import fat_png
from tests.stores import usually_on
from tests.waiting import eventually, generous

IMAGE_BYTES = 1_500_000
"""2 MB in base64; a stream of three partial images and the image is 8 MB."""
FAST_CLIENTS = 50
MAX_GROWTH_MB = 150
"""8 MB are pending for each of 51 clients; a copy for each would take 400 MB."""
ENOUGH_BYTES = 400_000
"""A slow client takes some seconds to read them."""
LOGGED = [("admin_keys", "ok"), ("generations", "bought"), ("generations", "hit")]
BODY = {**USUAL, "prompt": "an otter", "stream": True, "partial_images": 3}


@dataclass
class FatUpstream:
    """Streams 8 MB when `may_stream` is set."""

    may_stream: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    base_url: str = ""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self.may_stream.wait()
        for index in range(3):
            await response.write(_frame("partial_image", index, partial_image_index=index))
        usage = {"input_tokens": 7, "output_tokens": 572, "total_tokens": 579}
        await response.write(_frame("completed", 3, usage=usage))
        return response


def _frame(kind: str, seed: int, **fields: object) -> bytes:
    name = f"image_generation.{kind}"
    image = base64.b64encode(fat_png(IMAGE_BYTES, seed)).decode()
    data = orjson.dumps({"type": name, "b64_json": image, **fields})
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


@asynccontextmanager
async def run_fat_upstream() -> AsyncIterator[FatUpstream]:
    upstream = FatUpstream()
    app = web.Application()
    app.router.add_post("/v1/images/generations", upstream.generate)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def slow_connection(
    client: Client, body: Mapping[str, object] = BODY
) -> AsyncIterator[asyncio.StreamReader]:
    """The response to a request, on a connection with small buffers."""
    url = URL(client.url)
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, (url.host, url.port))
        reader, writer = await asyncio.open_connection(sock=opened, limit=1024)
        data = orjson.dumps(body)
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nHost: {url.host}\r\n"
            f"Authorization: Bearer {client.secret}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        try:
            yield reader
        finally:
            writer.transport.abort()


async def read_slowly(reader: asyncio.StreamReader, *, bytes_a_second: int = 1024) -> int:
    """Reads until the gateway closes the connection, or until this is cancelled; the byte count."""
    received = 0
    with suppress(ConnectionResetError):
        while chunk := await reader.read(bytes_a_second // 10):
            received += len(chunk)
            await asyncio.sleep(0.1)
    return received


async def read_fast(client: Client) -> int:
    """Reads a stream; the number of its events."""
    headers = {"Authorization": f"Bearer {client.secret}"}
    url = f"{client.url}/v1/images/generations"
    events, tail = 0, b""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=BODY, headers=headers) as response,
    ):
        async for chunk in response.content.iter_any():
            events += (tail + chunk).count(b"event: ") - tail.count(b"event: ")
            tail = chunk[-6:]
    return events


def peak_mb(pid: int) -> float:
    """The peak memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


@asynccontextmanager
async def one_worker(
    folder: Path, redis_url: str | None
) -> AsyncIterator[tuple[FatUpstream, Processes, Client]]:
    """A gateway with one worker, and an upstream with large images."""
    async with (
        run_fat_upstream() as upstream,
        run_processes(folder, upstream.base_url, workers=1, redis_url=redis_url) as (
            processes,
            client,
        ),
    ):
        yield upstream, processes, client


@pytest.mark.timed
@usually_on("redis")
async def test_a_client_at_a_kilobyte_a_second_delays_no_other_client_and_costs_no_memory(
    tmp_path: Path, store_url: str | None
) -> None:
    """Fifty fast clients follow the same stream of 8 MB."""
    async with one_worker(tmp_path, store_url) as (upstream, processes, client):
        alice = await client.with_key("alice")
        (worker,) = processes.workers()
        async with slow_connection(alice) as reader:
            slow = asyncio.create_task(read_slowly(reader))
            fast = [asyncio.create_task(read_fast(alice)) for _ in range(FAST_CLIENTS)]
            await let_pass(alice, workers=1)
            before_mb = peak_mb(worker)
            upstream.may_stream.set()
            async with generous():
                events = await asyncio.gather(*fast)
            growth_mb = peak_mb(worker) - before_mb
            records = await processes.records(1 + FAST_CLIENTS)
            is_still_reading = not slow.done()
            slow.cancel()

    assert events == [4] * FAST_CLIENTS
    assert is_still_reading
    assert upstream.calls == 1
    assert sorted(r.outcome for r in records) == ["bought"] + ["collapsed"] * FAST_CLIENTS
    assert growth_mb < MAX_GROWTH_MB


@pytest.fixture
def _short_write_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.5)


@asynccontextmanager
async def open_streaming_gateway(folder: Path) -> AsyncIterator[tuple[InProcess, Client]]:
    """A gateway whose upstream streams immediately, and a client."""
    async with run_fat_upstream() as upstream:
        upstream.may_stream.set()
        async with run_gateway(make_settings(folder, upstream.base_url)) as here:
            yield here, await here.client.with_key()


@needs_asyncio_that_pauses
@pytest.mark.usefixtures("_short_write_stall")
async def test_a_client_that_stops_reading_is_disconnected(tmp_path: Path) -> None:
    async with open_streaming_gateway(tmp_path) as (here, alice), slow_connection(alice):
        await eventually(lambda: len(here.runner.server.connections) == 2)
        await eventually(lambda: len(here.runner.server.connections) == 1)
        hit = await alice.ask("an otter")

    assert hit.cache_status.startswith("hit")


@pytest.mark.timed
@pytest.mark.usefixtures("_short_write_stall")
async def test_a_client_that_reads_slowly_all_the_time_is_not_disconnected(tmp_path: Path) -> None:
    """It takes longer for one write than `WRITE_STALL_SECONDS`."""
    async with open_streaming_gateway(tmp_path) as (here, alice), slow_connection(alice) as reader:
        received = 0
        async with generous():
            while received < ENOUGH_BYTES and (chunk := await reader.read(4096)):
                received += len(chunk)
                await asyncio.sleep(0.02)
        still_open = len(here.runner.server.connections)

    assert still_open == 2


@usually_on("sqlite")
async def test_a_disconnect_from_a_large_response_is_logged_as_an_answer_and_not_as_an_error(
    tmp_path: Path, store_url: str | None
) -> None:
    async with one_worker(tmp_path, store_url) as (upstream, processes, client):
        upstream.may_stream.set()
        alice = await client.with_key("alice")
        await read_fast(alice)
        plain = {**USUAL, "prompt": BODY["prompt"]}
        async with slow_connection(alice, plain) as reader:
            assert b" 200 OK" in await reader.readline()
        await eventually(lambda: len(processes.log('"request_answered"')) >= len(LOGGED))
        lines = processes.log('"request_answered"')
        errors = [line for line in processes.log() if line["level"] == "error"]

    assert [(line["endpoint"], line["outcome"]) for line in lines] == LOGGED
    assert errors == []
