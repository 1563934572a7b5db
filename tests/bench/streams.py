"""Streams: latency added to the first partial image, rate, and the effect of a slow client on
others.

The baseline of the first two is the same upstream without the gateway. wrk cannot measure when a
part of an answer arrived, so this process has its own small client.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp

from gateway.net.sse import Splitter
from tests.bench import nginx
from tests.bench.cells import GATEWAY, SIZES, UPSTREAM
from tests.bench.events import PARTIALS
from tests.bench.goals import FIRST_PARTIAL, SLOW_FOLLOWER, added_ms
from tests.bench.load import Failed, Target
from tests.bench.nginx import PATH
from tests.bench.processes import run_process
from tests.bench.processor_time import SETTLE_SECONDS, Processes, spent_by
from tests.bench.results import Figure, Measurement, Part
from tests.bench.servers import Setup, run_gateway
from tests.ports import free_port

CONNECTIONS = (1, 8)
CROWD = 50
SLOW_BYTES = 1024
"""Bytes a second that a slow client reads."""
MAX_BYTES = 1 << 24

_prompts = count(time.time_ns())


@dataclass(frozen=True)
class Stream:
    """The measurements of one stream."""

    first_seconds: float
    """From the request to the end of the first event."""


def streams(folder: Path, redis_url: str, sizes: Sequence[str], *, seconds: int) -> Iterator[Part]:
    """The results of each image size."""
    for size in sizes:
        print(f"stream {size} …", file=sys.stderr)  # noqa: T201
        own_folder, port = folder / f"streams-{SIZES[size]}", free_port()
        own_folder.mkdir()
        answer = own_folder / "answer.json"
        answer.write_bytes(nginx.answer_of(SIZES[size]))
        command = [sys.executable, "-m", "tests.bench.events", str(port), str(answer)]
        with run_process("events", command, port=port, folder=own_folder) as pid:
            base_url = f"http://127.0.0.1:{port}/v1"
            setup = Setup(own_folder, f"stream {size}", base_url, redis_url, upstream_pid=pid)
            processes = Processes(upstream=pid)
            upstream = Target(UPSTREAM, f"http://127.0.0.1:{port}/{PATH}", processes=processes)
            with run_gateway(setup, GATEWAY, redis_url) as gateway:
                yield from _measure(size, [upstream, gateway], seconds=seconds)
                yield Part(figures=(asyncio.run(_measure_crowd(size, gateway)),))


def _measure(size: str, targets: Sequence[Target], *, seconds: int) -> Iterator[Part]:
    """Measures one target after another, each after a second of warm-up."""
    for target in targets:
        asyncio.run(_run_streams(target, seconds=1, connections=1))
    time.sleep(SETTLE_SECONDS)
    for connections in CONNECTIONS:
        servers = {
            target.name: _measure_target(target, seconds=seconds, connections=connections)
            for target in targets
        }
        figures = [FIRST_PARTIAL[size].figure(added_ms(servers))] if connections == 1 else []
        yield Part({f"stream {size} c={connections}": servers}, figures)


def _measure_target(target: Target, *, seconds: int, connections: int) -> Measurement:
    """The latency is that of the first event."""
    with spent_by(target.processes) as spent:
        started = time.perf_counter()
        done = asyncio.run(_run_streams(target, seconds=seconds, connections=connections))
        elapsed = time.perf_counter() - started
    return spent.for_each(
        len(done),
        per_second=len(done) / elapsed,
        p50_ms=statistics.median(stream.first_seconds for stream in done) * 1000,
    )


async def _measure_crowd(size: str, target: Target) -> Figure:
    """How long fifty clients take for one stream, without and with a slow client beside them."""
    alone = await _crowd_seconds(target, _body())
    body = _body()
    slow = asyncio.create_task(_read_slowly(target, body))
    try:
        beside = await _crowd_seconds(target, body)
        is_still_reading = not slow.done()
    finally:
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    if not is_still_reading:
        raise Failed("the slow reader was not slow")
    return SLOW_FOLLOWER[size].figure(beside / alone)


async def _crowd_seconds(target: Target, body: Mapping[str, object]) -> float:
    started = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=CROWD)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:

        async def read() -> None:
            async with session.post(target.url, json=body) as response:
                if b"image_generation.completed" not in await response.read():
                    raise Failed(f"{target.name} answered {response.status} without an image")

        await asyncio.gather(*(read() for _ in range(CROWD)))
    return time.perf_counter() - started


async def _read_slowly(target: Target, body: Mapping[str, object]) -> None:
    """Reads a stream slowly, to its end or until it is cancelled."""
    async with (
        aiohttp.ClientSession(headers=target.headers, read_bufsize=SLOW_BYTES) as session,
        session.post(target.url, json=body) as response,
    ):
        while await response.content.read(SLOW_BYTES):  # noqa: ASYNC110 - the pace is the point
            await asyncio.sleep(1)


async def _run_streams(target: Target, *, seconds: int, connections: int) -> list[Stream]:
    until = time.perf_counter() + seconds
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, headers=target.headers) as session:
        runs = (_repeat(session, target, until=until) for _ in range(connections))
        return [stream for streams in await asyncio.gather(*runs) for stream in streams]


async def _repeat(session: aiohttp.ClientSession, target: Target, *, until: float) -> list[Stream]:
    streams = []
    while time.perf_counter() < until:
        streams.append(await _read(session, target))
    return streams


async def _read(session: aiohttp.ClientSession, target: Target) -> Stream:
    """Reads a stream to its end. Raises `Failed` if events are missing."""
    splitter = Splitter(max_frame_bytes=MAX_BYTES)
    sent_at, arrived_at = time.perf_counter(), []
    async with session.post(target.url, json=_body()) as response:
        async for chunk in response.content.iter_any():
            arrived_at += [time.perf_counter()] * len(splitter.feed(chunk))
    if len(arrived_at) != PARTIALS + 1:
        raise Failed(f"{target.name} answered {response.status} with {len(arrived_at)} events")
    return Stream(arrived_at[0] - sent_at)


def _body() -> dict[str, object]:
    """A stream request with a new prompt."""
    return {
        "model": "gpt-image-2",
        "size": "1024x1024",
        "quality": "low",
        "prompt": f"an otter, {next(_prompts)}",
        "stream": True,
        "partial_images": PARTIALS,
    }
