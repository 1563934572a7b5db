"""Transcoding costs memory, processor time and a client nothing: what one key can take of them."""

from __future__ import annotations

import asyncio
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.cache import transcoding
from gateway.imagefile.convert import MAX_SMALL_PIXELS, transcode_image
from gateway.store.commands import ReadEntry
from gateway.store.protocol import Command, Store
from tests import scripted_upstream
from tests.gateways import Client, InProcess, Reply, Upstream, run_processes
from tests.http.conftest import OpenGateway
from tests.pngs import write_png
from tests.processes import children_of_threads, resident_bytes
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("sqlite")

MIB = 1024 * 1024
EDGE = 5736
"""32.9 megapixels, just below `cache.max_pixels`."""


@dataclass
class Conversions:
    """The conversions that were begun, by `output_compression`; each waits for the gate."""

    begun: list[int] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def convert(self, png: bytes, **options: Any) -> bytes | None:
        self.begun.append(options["compression"])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.gate.wait()
        self.running -= 1
        return transcode_image(png, **options)

    async def until_begun(self, count: int) -> None:
        await eventually(lambda: len(self.begun) >= count)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Conversions]:
    """Holds every conversion until its gate is opened."""
    held = Conversions()
    monkeypatch.setattr(transcoding, "transcode_in_process", held.convert)
    yield held
    held.gate.set()


@asynccontextmanager
async def transcoding_gateway(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    async with open_gateway(cache={"derive_formats": True}) as here:
        await (await here.client.with_key("owner")).ask("a pond")
        yield here


def jpeg(client: Client, compression: int, **headers: str) -> asyncio.Task[Any]:
    """Asks for the image in a format that has to be made."""
    asking = client.ask(
        "a pond", output_format="jpeg", output_compression=compression, headers=headers
    )
    return asyncio.create_task(asking)


@contextmanager
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(transcoding, "is_large", lambda png: True)
        yield


async def test_large_images_are_transcoded_one_at_a_time(
    open_gateway: OpenGateway, conversions: Conversions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with transcoding_gateway(open_gateway) as here:
        keys = [await here.client.with_key(f"key{i}") for i in range(4)]
        with everything_is_large(monkeypatch):
            asking = [jpeg(key, i) for i, key in enumerate(keys)]
            await conversions.until_begun(1)
            conversions.gate.set()
            replies = await asyncio.gather(*asking)

    assert {reply.status for reply in replies} == {200}
    assert all("detail=derived" in reply.cache_status for reply in replies)
    assert sorted(conversions.begun) == [0, 1, 2, 3]
    assert conversions.most_running == 1


async def test_small_images_do_not_wait_for_large_ones(
    open_gateway: OpenGateway, conversions: Conversions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with transcoding_gateway(open_gateway) as here:
        alice, bob = await here.client.with_key("alice"), await here.client.with_key("bob")
        with everything_is_large(monkeypatch):
            large = jpeg(alice, 1)
            await conversions.until_begun(1)
        small = jpeg(bob, 2)
        await conversions.until_begun(2)
        assert not large.done()
        conversions.gate.set()
        assert {(await large).status, (await small).status} == {200}


@pytest.fixture
def ask_behind_a_flood(
    open_gateway: OpenGateway, conversions: Conversions, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Awaitable[list[Reply]]]:
    """Has Bob ask for an image while Eve waits for ten, 0 to 9; his reply, then hers."""

    async def ask(compression: int) -> list[Reply]:
        async with transcoding_gateway(open_gateway) as here:
            eve, bob = await here.client.with_key("eve"), await here.client.with_key("bob")
            with everything_is_large(monkeypatch):
                flood = [jpeg(eve, each) for each in range(10)]
                await eventually(lambda: here.gateway.cache.transcoding._open[eve.key_id] == 10)
                honest = jpeg(bob, compression)
                await eventually(lambda: here.gateway.cache.transcoding._open[bob.key_id] == 1)
                conversions.gate.set()
                return await asyncio.gather(honest, *flood)

    return ask


async def test_a_key_with_many_images_delays_another_key_by_one_of_them(
    conversions: Conversions, ask_behind_a_flood: Callable[[int], Awaitable[list[Reply]]]
) -> None:
    await ask_behind_a_flood(99)

    # The first of the flood was running, and the second was in line before Bob came.
    assert 99 in conversions.begun[:3]


async def test_a_key_that_waits_for_an_image_delays_no_other_key_that_asks_for_it(
    conversions: Conversions, ask_behind_a_flood: Callable[[int], Awaitable[list[Reply]]]
) -> None:
    """The other key has it in a turn of its own, and it is made once."""
    replies = await ask_behind_a_flood(9)

    assert 9 in conversions.begun[:3]
    assert sorted(conversions.begun) == list(range(10))
    assert len({reply.images[0] for reply in (replies[0], replies[10])}) == 1


async def test_an_image_that_is_refused_because_too_many_are_open_does_not_count(
    open_gateway: OpenGateway, conversions: Conversions
) -> None:
    limit = transcoding.MAX_OPEN + 1
    async with transcoding_gateway(open_gateway) as here:
        eve = await here.client.with_key("eve", limits={"images_per_minute": limit})
        waiting = [jpeg(eve, compression) for compression in range(transcoding.MAX_OPEN)]
        await eventually(
            lambda: here.gateway.cache.transcoding._open[eve.key_id] == transcoding.MAX_OPEN
        )
        refused = [await jpeg(eve, 99) for _ in range(3)]
        conversions.gate.set()
        await asyncio.gather(*waiting)
        later = await jpeg(eve, 99)

    assert {reply.status for reply in refused} == {429}
    assert later.status == 200


async def test_a_key_with_too_many_open_images_is_refused_and_others_are_not(
    open_gateway: OpenGateway, upstream: Upstream, conversions: Conversions
) -> None:
    async with transcoding_gateway(open_gateway) as here:
        eve, bob = await here.client.with_key("eve"), await here.client.with_key("bob")
        waiting = [jpeg(eve, compression) for compression in range(transcoding.MAX_OPEN)]
        await eventually(
            lambda: here.gateway.cache.transcoding._open[eve.key_id] == transcoding.MAX_OPEN
        )
        refused = await jpeg(eve, 99)
        shared = jpeg(eve, 0)  # it is being made
        honest = jpeg(bob, 98)
        conversions.gate.set()
        replies = await asyncio.gather(shared, honest, *waiting)
        later = await jpeg(eve, 99)
        metrics = await here.client.metrics()
        assert not here.gateway.cache.transcoding._open

    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["Retry-After"] == "5"
    assert {reply.status for reply in [*replies, later]} == {200}
    assert metrics['gateway_refusals_total{key="eve",reason="transcoding"}'] == 1
    assert len(await upstream.bodies()) == 1


async def test_a_transcoded_image_counts_in_the_images_of_the_minute(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with transcoding_gateway(open_gateway) as here:
        alice = await here.client.with_key("alice", limits={"images_per_minute": 2})
        # The same image is made once, and a hit is no image that is made.
        same = await asyncio.gather(*(jpeg(alice, 50) for _ in range(5)))
        hit = await jpeg(alice, 50)
        second = await jpeg(alice, 51)
        third = await jpeg(alice, 52)

    assert {reply.status for reply in [*same, hit, second]} == {200}
    assert (third.status, third.error["code"]) == (429, "rate_limit_exceeded")
    assert "Limit images_per_minute of key 'alice' reached" in third.error["message"]
    assert int(third.headers["Retry-After"]) in range(1, 61)
    assert len(await upstream.bodies()) == 1


@dataclass
class HeldLookUps:
    """A store whose look-ups of sources wait at the gate, once it is closed, with their results."""

    store: Store
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        results = await self.store.execute(commands)
        if any(isinstance(command, ReadEntry) for command in commands):
            self.held += 1
            await self.gate.wait()
        return results


async def test_an_image_that_was_made_meanwhile_does_not_count(
    open_gateway: OpenGateway, conversions: Conversions
) -> None:
    """A request has found no entry, and goes on when another one has stored it."""
    async with transcoding_gateway(open_gateway) as here:
        alice = await here.client.with_key("alice", limits={"images_per_minute": 2})
        first = jpeg(alice, 50)
        await conversions.until_begun(1)
        made_here = here.gateway.cache.transcoding
        look_ups = HeldLookUps(made_here._store)
        made_here._store = look_ups  # type: ignore[assignment]
        late = jpeg(alice, 50)
        await eventually(lambda: look_ups.held)
        conversions.gate.set()
        replies = [await first]
        look_ups.gate.set()
        replies += [await late, await jpeg(alice, 51)]
        refused = await jpeg(alice, 52)

    assert {reply.status for reply in replies} == {200}
    assert refused.status == 429


async def test_an_image_that_cannot_be_transcoded_is_tried_once(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []

    def fail(png: bytes, **options: Any) -> None:
        tried.append(png)

    monkeypatch.setattr(transcoding, "transcode_in_process", fail)
    async with transcoding_gateway(open_gateway) as here:
        alice = await here.client.with_key("alice", limits={"images_per_minute": 3})
        free = {"Cache-Control": "only-if-cached"}
        replies = [await jpeg(alice, 50, **free) for _ in range(5)]
        bought = await jpeg(alice, 50)

    assert {reply.error["code"] for reply in replies} == {"only_if_cached"}
    assert len(tried) == 1
    assert bought.cache_status == "fwd=miss; stored"


async def test_an_image_whose_process_fails_is_bought_and_the_next_one_is_transcoded(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with transcoding_gateway(open_gateway) as here:
        alice = await here.client.with_key("alice")
        with monkeypatch.context() as patch, capture_logs() as log:
            patch.setattr(sys, "executable", str(tmp_path / "missing"))
            bought = await jpeg(alice, 50)
        transcoded = await jpeg(alice, 51)

    assert bought.cache_status == "fwd=miss; stored"
    assert "detail=derived" in transcoded.cache_status
    assert len(await upstream.bodies()) == 2
    (failed,) = [line for line in log if line["event"] == "transcoding_failed"]
    assert failed["log_level"] == "warning"


# ── memory ──────────────────────────────────────────────────────────────────────────────────


def write_large_png() -> bytes:
    row = b"\0" + bytes(range(256)) * (3 * EDGE // 256) + bytes(3 * EDGE % 256)
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(row) for _ in range(EDGE)) + deflate.flush()
    return write_png(EDGE, EDGE, data)


@dataclass
class Peak:
    """The most memory that a worker had, and that its processes for transcoding had together."""

    worker_bytes: int = 0
    others_bytes: int = 0


@asynccontextmanager
async def watching_memory(worker: int) -> AsyncIterator[Peak]:
    peak = Peak()

    async def watch() -> None:
        while True:
            others_bytes = sum(map(resident_bytes, children_of_threads(worker)))
            peak.others_bytes = max(peak.others_bytes, others_bytes)
            peak.worker_bytes = max(peak.worker_bytes, resident_bytes(worker))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    yield peak
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.timed
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
async def test_six_requests_for_the_largest_image_take_the_memory_of_one(tmp_path: Path) -> None:
    assert EDGE * EDGE > MAX_SMALL_PIXELS
    reply = scripted_upstream.http(
        200, scripted_upstream.images(write_large_png()), content_type="application/json"
    )
    async with (
        scripted_upstream.upstream(reply) as upstream,
        run_processes(
            tmp_path / "it", upstream.url, workers=1, options={"cache": {"derive_formats": True}}
        ) as (processes, client),
    ):
        keys = [await client.with_key(name) for name in ("alice", "bob")]
        first = await keys[0].ask("a pond")
        asking = [
            key.ask("a pond", output_format=output_format, output_compression=compression)
            for key, output_format, compression in zip(
                keys * 3,
                ["jpeg", "jpeg", "webp", "webp", "webp", "webp"],
                range(50, 80, 5),
                strict=True,
            )
        ]
        async with watching_memory(*processes.workers()) as peak:
            replies = await asyncio.gather(*asking)

    assert [reply.status for reply in [first, *replies]] == [200] * 7
    assert all("detail=derived" in reply.cache_status for reply in replies)
    assert len(upstream.bodies) == 1
    # Six at once in the worker took 1.4 GB, and one took 700 MB.
    assert peak.worker_bytes < 160 * MIB
    assert 100 * MIB < peak.others_bytes < 512 * MIB
