"""A stream's slow readers: they hold up nobody, cost no memory, and are cut off when they stop."""

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
    MODEL,
    Client,
    InProcess,
    Processes,
    make_settings,
    needs_asyncio_that_pauses,
    run_gateway,
    run_processes,
)
from tests.http.test_bounds import fat_png

IMAGE_BYTES = 1_500_000
"""2 MB in base64: a stream of three partial images and the image has 8 MB."""
FAST_READERS = 50
MAX_GROWTH_MB = 150
"""Each of 51 readers has 8 MB to come: copies would take 400 MB."""
ENOUGH_BYTES = 400_000
"""Takes a reader that is slow enough some seconds."""
ANSWERS = [("admin_keys", "ok"), ("generations", "bought"), ("generations", "hit")]
BODY = {"model": MODEL, "prompt": "an otter", "stream": True, "partial_images": 3}


@dataclass
class FatUpstream:
    """Streams 8 MB as soon as it may."""

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
    client: Client, question: Mapping[str, object] = BODY
) -> AsyncIterator[asyncio.StreamReader]:
    """An answer that was asked for, on a connection into which little fits."""
    url = URL(client.url)
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, (url.host, url.port))
        reader, writer = await asyncio.open_connection(sock=opened, limit=1024)
        body = orjson.dumps(question)
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nHost: {url.host}\r\n"
            f"Authorization: Bearer {client.secret}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        try:
            yield reader
        finally:
            writer.transport.abort()


async def read_slowly(reader: asyncio.StreamReader, *, bytes_a_second: int = 1024) -> int:
    """How much comes until the other side hangs up, or until this is cancelled."""
    received = 0
    with suppress(ConnectionResetError):
        while chunk := await reader.read(bytes_a_second // 10):
            received += len(chunk)
            await asyncio.sleep(0.1)
    return received


async def read_fast(client: Client) -> int:
    """How many events come."""
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
    """The most memory that a process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@asynccontextmanager
async def one_worker(
    folder: Path, redis_url: str | None
) -> AsyncIterator[tuple[FatUpstream, Processes, Client]]:
    """A gateway with one worker, before an upstream of large images."""
    async with (
        run_fat_upstream() as upstream,
        run_processes(folder, upstream.base_url, workers=1, redis_url=redis_url) as (
            processes,
            client,
        ),
    ):
        yield upstream, processes, client


@pytest.mark.timed
async def test_a_reader_of_a_kilobyte_a_second_slows_nobody_and_grows_nothing(
    tmp_path: Path, store_url: str | None
) -> None:
    """Beside fifty fast ones, of a stream of 8 MB."""
    async with one_worker(tmp_path, store_url) as (upstream, processes, client):
        alice = await client.with_key("alice")
        (worker,) = processes.workers()
        async with slow_connection(alice) as reader:
            slow = asyncio.create_task(read_slowly(reader))
            fast = [asyncio.create_task(read_fast(alice)) for _ in range(FAST_READERS)]
            await asyncio.sleep(1.5)
            before_mb = peak_mb(worker)
            upstream.may_stream.set()
            async with asyncio.timeout(30):
                events = await asyncio.gather(*fast)
            growth_mb = peak_mb(worker) - before_mb
            records = await processes.records(1 + FAST_READERS)
            is_still_read = not slow.done()
            slow.cancel()

    assert events == [4] * FAST_READERS
    assert is_still_read
    assert upstream.calls == 1
    assert sorted(r.outcome for r in records) == ["bought"] + ["collapsed"] * FAST_READERS
    assert growth_mb < MAX_GROWTH_MB


@pytest.fixture
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.5)


@asynccontextmanager
async def streaming_to_one(folder: Path) -> AsyncIterator[tuple[InProcess, Client]]:
    """A gateway whose upstream streams at once."""
    async with run_fat_upstream() as upstream:
        upstream.may_stream.set()
        async with run_gateway(make_settings(folder, upstream.base_url)) as here:
            yield here, await here.client.with_key()


@needs_asyncio_that_pauses
@pytest.mark.usefixtures("_short_patience")
async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    async with streaming_to_one(tmp_path) as (here, alice), slow_connection(alice):
        async with asyncio.timeout(10):
            while len(here.runner.server.connections) < 2:  # noqa: ASYNC110 - only it tells
                await asyncio.sleep(0.02)
            while len(here.runner.server.connections) > 1:  # noqa: ASYNC110 - only it tells
                await asyncio.sleep(0.02)
        hit = await alice.ask("an otter")

    assert hit.cache_status.startswith("hit")


@pytest.mark.usefixtures("_short_patience")
async def test_a_reader_that_takes_a_little_all_the_time_is_not(tmp_path: Path) -> None:
    """A slice takes it much longer than a reader that stands still is given."""
    async with streaming_to_one(tmp_path) as (here, alice), slow_connection(alice) as reader:
        received = 0
        async with asyncio.timeout(30):
            while received < ENOUGH_BYTES and (chunk := await reader.read(4096)):
                received += len(chunk)
                await asyncio.sleep(0.02)
        still_open = len(here.runner.server.connections)

    assert still_open == 2


async def test_who_leaves_in_the_middle_of_a_large_answer_is_counted_and_is_no_fault(
    tmp_path: Path, store_url: str | None
) -> None:
    async with one_worker(tmp_path, store_url) as (upstream, processes, client):
        upstream.may_stream.set()
        alice = await client.with_key("alice")
        await read_fast(alice)
        plain = {"model": MODEL, "prompt": BODY["prompt"]}
        async with slow_connection(alice, plain) as reader:
            assert b" 200 OK" in await reader.readline()
        async with asyncio.timeout(10):
            while len(lines := processes.log('"request_answered"')) < len(ANSWERS):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        errors = [line for line in processes.log() if line["level"] == "error"]

    assert [(line["endpoint"], line["outcome"]) for line in lines] == ANSWERS
    assert errors == []
