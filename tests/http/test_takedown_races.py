"""Take-downs during reads, writes, transcoding and purchases."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.imagefile.convert import transcode_image
from tests.gateways import Client, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.http.test_links import show
from tests.redis_server import run_durable_redis
from tests.waiting import GENEROUS_SECONDS, eventually

PROPAGATION_SECONDS = 1.0


async def take_down(client: Client, image: str, **more: bool) -> Reply:
    """By the admin API."""
    return await client.admin("POST", "/admin/cache/takedown", {"image": image, **more})


def image_of(reply: Reply) -> str:
    """The id of the only image of an answer."""
    return reply.headers["x-gateway-image-ids"]


def digest_of(reply: Reply) -> str:
    """The digest of the only image of an answer."""
    return hashlib.sha256(base64.b64decode(reply.images[0])).hexdigest()


@contextmanager
def writes_blocked(folder: Path) -> Iterator[None]:
    """Writes to this folder wait until the block ends."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def run_embedded(
    tmp_path: Path, upstream: Upstream, **cache: object
) -> AsyncIterator[InProcess]:
    """A gateway whose images are files, so that a test can block reads and writes."""
    settings = make_settings(tmp_path / "data", upstream.base_url, cache=cache)
    async with run_gateway(settings) as here:
        yield here


async def test_an_image_that_is_being_read_is_not_served(
    tmp_path: Path, upstream: Upstream
) -> None:
    """A pipe replaces the file, so that the read takes until the test writes the bytes."""
    async with run_embedded(tmp_path, upstream, memory_bytes=0) as here:
        alice = await here.client.with_key()
        bought = await alice.ask("a pond", model="dall-e-3", response_format="url")
        link = bought.json["data"][0]["url"]
        data = (await show(alice, link)).body
        digest = hashlib.sha256(data).hexdigest()
        path = tmp_path / "data" / "blobs" / digest[:2] / digest
        path.unlink()
        os.mkfifo(path)
        os.utime(path, (time.time() + 3600,) * 2)
        pipe = os.open(path, os.O_RDWR)
        reading = asyncio.create_task(show(alice, link))
        await eventually(lambda: _times_open(path) == 2)
        taken = await take_down(alice, image_of(bought))
        await asyncio.to_thread(_write_all, pipe, data)
        shown = await reading

    assert taken.json["images"] == 1
    assert shown.status == 410


def _times_open(path: Path) -> int:
    """How many descriptors of this process are open on a file."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += descriptor.readlink() == path.resolve()
    return count


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


async def test_an_image_that_is_being_stored_is_deleted(tmp_path: Path, upstream: Upstream) -> None:
    """The same bytes are bought once more, and stored just after the take-down deleted them."""
    prompt, fresh = "[[sim:same-bytes]] a pond", {"Cache-Control": "no-cache"}
    async with run_embedded(tmp_path, upstream) as here:
        alice = await here.client.with_key()
        first = await alice.ask(prompt)
        digest = digest_of(first)
        with writes_blocked(tmp_path / "data" / "blobs"):
            buying = asyncio.create_task(alice.ask(prompt, headers=fresh))
            await upstream.until_sent(2)
            await asyncio.sleep(0.5)
            await take_down(alice, image_of(first))
            await asyncio.sleep(PROPAGATION_SECONDS)
        bought = await buying
        await eventually(lambda: has_tracked(here, 0))
        stored = await here.gateway.blob_store.get(digest)

    assert bought.status >= 400
    assert bought.headers["x-should-retry"] == "false"
    assert stored is None


async def has_tracked(gateway: InProcess, count: int) -> bool:
    return (await gateway.gateway.cache.blobs.totals()).count == count


async def test_an_image_that_was_taken_down_is_not_transcoded_again(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        await alice.ask("a pond")
        jpeg = await alice.ask("a pond", output_format="jpeg")
        await take_down(alice, image_of(jpeg))
        again = await alice.ask("a pond", output_format="jpeg")
        stored = await here.gateway.blob_store.get(digest_of(jpeg))

    assert "detail=derived" in jpeg.cache_status
    assert again.cache_status == "fwd=miss; stored"
    assert stored is None
    assert len(await upstream.bodies()) == 2


async def test_an_image_that_is_being_transcoded_is_taken_down_with_its_source(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_embedded(tmp_path, upstream, derive_formats=True) as here:
        alice = await here.client.with_key()
        png = await alice.ask("a pond")
        with writes_blocked(tmp_path / "data" / "blobs"):
            transcoding = asyncio.create_task(alice.ask("a pond", output_format="jpeg"))
            await asyncio.sleep(0.5)
            await take_down(alice, image_of(png))
        jpeg = await transcoding
        await eventually(lambda: has_tracked(here, 1))

    assert jpeg.cache_status.startswith("fwd=miss; stored")
    assert len(await upstream.bodies()) == 2


async def test_an_image_is_not_stored_if_its_source_is_taken_down_while_it_is_transcoded(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway takes it down, and the client disconnects."""
    begun, may_end = threading.Event(), threading.Event()

    def transcode(*args: Any, **options: Any) -> bytes | None:
        begun.set()
        may_end.wait(GENEROUS_SECONDS)
        return transcode_image(*args, **options)

    monkeypatch.setattr("gateway.cache.transcoding.transcode_in_process", transcode)
    async with open_gateway(cache={"derive_formats": True}) as here, open_gateway() as there:
        alice = await here.client.with_key()
        png = await alice.ask("a pond")
        # It does not buy the image instead, which would be right.
        cached = {"Cache-Control": "only-if-cached"}
        asking = asyncio.create_task(alice.ask("a pond", output_format="jpeg", headers=cached))
        await asyncio.to_thread(begun.wait, GENEROUS_SECONDS)
        (transcoding,) = here.gateway.cache.transcoding._requested._running.values()
        await take_down(there.client, image_of(png))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        may_end.set()
        await transcoding
        jpeg = await alice.ask("a pond", output_format="jpeg", headers=cached)
        totals = await here.gateway.cache.blobs.totals()

    assert (jpeg.status, jpeg.error["code"]) == (504, "only_if_cached")
    assert totals.count == 0


async def test_a_prompt_that_was_taken_down_during_a_purchase_stays_refused(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    prompt = "a pond"
    async with open_gateway() as here:
        alice = await here.client.with_key()
        first = await alice.ask(prompt)
        async with upstream.hold() as gate:
            buying = asyncio.create_task(alice.ask(prompt, n=2))
            await gate.until(1)
            await take_down(alice, image_of(first), prompt=True)
        await buying
        again = await alice.ask(prompt, headers={"X-Gateway-Variation": "1"})

    assert (again.status, again.error["code"]) == (403, "content_taken_down")
    assert len(await upstream.bodies()) == 2


async def test_a_prompt_that_was_taken_down_is_not_transcoded_from_another_format(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        await alice.ask("a pond", n=2)
        jpeg = await alice.ask("a pond", output_format="jpeg")
        await take_down(alice, image_of(jpeg), prompt=True)
        second = {"X-Gateway-Variation": "1"}
        again = await alice.ask("a pond", output_format="jpeg", headers=second)

    assert "detail=derived" in jpeg.cache_status
    assert (again.status, again.error["code"]) == (403, "content_taken_down")
    assert len(await upstream.bodies()) == 1


async def test_bytes_are_deleted_when_their_blob_store_is_back(
    tmp_path: Path, upstream: Upstream
) -> None:
    """The take-down applies at once, because its list is in the other store."""
    with run_durable_redis(tmp_path) as images:
        store = {"blobs_url": images.url}
        settings = make_settings(tmp_path / "data", upstream.base_url, store=store)
        async with run_gateway(settings) as here:
            alice = await here.client.with_key()
            first = await alice.ask("a pond")
            images.kill()
            taken = await take_down(alice, image_of(first))
            images.start_again()
            with redis.Redis.from_url(images.url) as client:

                async def are_deleted() -> bool:
                    return await asyncio.to_thread(client.keys, "igw:blob:*") == []

                await eventually(are_deleted)

    assert taken.status == 503


async def test_bytes_that_reappear_after_a_take_down_are_deleted_and_not_tracked(
    open_gateway: OpenGateway,
) -> None:
    """For example in a folder that was unavailable during the take-down."""
    async with open_gateway() as here:
        alice = await here.client.with_key()
        first = await alice.ask("a pond")
        await take_down(alice, image_of(first))
        await here.gateway.blob_store.put(digest_of(first), base64.b64decode(first.images[0]), 60)
        tracked = await here.gateway.cache.blobs.track_untracked()
        stored = await here.gateway.blob_store.get(digest_of(first))

    assert tracked == 0
    assert stored is None
