"""Take-downs against everything that is under way: reads, writes, derivations, purchases."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import redis

from tests.gateways import Client, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.http.test_links import show
from tests.redis_server import run_durable_redis
from tests.waiting import eventually

KNOWN_BY_ALL_SECONDS = 1.0


async def take_down(client: Client, image: str, **more: bool) -> Reply:
    """By the admin API."""
    return await client.admin("POST", "/admin/cache/takedown", {"image": image, **more})


def image_of(reply: Reply) -> str:
    """The id of the one image in an answer."""
    return reply.headers["x-gateway-image-ids"]


def digest_of(reply: Reply) -> str:
    """The content hash of the one image in an answer."""
    return hashlib.sha256(base64.b64decode(reply.images[0])).hexdigest()


@contextmanager
def nobody_writes(folder: Path) -> Iterator[None]:
    """Whoever stores bytes in this folder waits until the block is left."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def run_embedded(
    tmp_path: Path, upstream: Upstream, **cache: object
) -> AsyncIterator[InProcess]:
    """A gateway whose images are files, which a test can hold fast."""
    settings = make_settings(tmp_path / "data", upstream.base_url, cache=cache)
    async with run_gateway(settings) as here:
        yield here


async def test_what_was_being_read_is_not_shown(tmp_path: Path, upstream: Upstream) -> None:
    """A pipe in the place of the file gives its bytes when the test likes."""
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
        cache_policy = asyncio.create_task(show(alice, link))
        await asyncio.sleep(0.2)
        taken = await take_down(alice, image_of(bought))
        await asyncio.to_thread(_write_all, pipe, data)
        shown = await cache_policy

    assert taken.json == {"images": 1}
    assert shown.status == 410


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


async def test_what_was_being_stored_does_not_stay(tmp_path: Path, upstream: Upstream) -> None:
    """The same bytes, bought once more, come when they have just been removed."""
    prompt, anew = "[[sim:same-bytes]] a pond", {"Cache-Control": "no-cache"}
    async with run_embedded(tmp_path, upstream) as here:
        alice = await here.client.with_key()
        first = await alice.ask(prompt)
        digest = digest_of(first)
        with nobody_writes(tmp_path / "data" / "blobs"):
            buying = asyncio.create_task(alice.ask(prompt, headers=anew))
            await upstream.until_sent(2)
            await asyncio.sleep(0.5)
            await take_down(alice, image_of(first))
            await asyncio.sleep(KNOWN_BY_ALL_SECONDS)
        bought = await buying
        await eventually(lambda: has_on_shelf(here, 0))
        kept = await here.gateway.blob_store.get(digest)

    assert bought.status >= 400
    assert bought.headers["x-should-retry"] == "false"
    assert kept is None


async def has_on_shelf(gateway: InProcess, count: int) -> bool:
    return (await gateway.gateway.cache.blobs.lru_totals()).count == count


async def test_what_is_made_anew_of_its_source_is_not_stored_again(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        await alice.ask("a pond")
        jpeg = await alice.ask("a pond", output_format="jpeg")
        await take_down(alice, image_of(jpeg))
        again = await alice.ask("a pond", output_format="jpeg")
        kept = await here.gateway.blob_store.get(digest_of(jpeg))

    assert "detail=derived" in jpeg.cache_status
    assert again.cache_status == "fwd=miss; stored"
    assert kept is None
    assert len(await upstream.bodies()) == 2


async def test_what_was_being_made_of_it_goes_with_it(tmp_path: Path, upstream: Upstream) -> None:
    async with run_embedded(tmp_path, upstream, derive_formats=True) as here:
        alice = await here.client.with_key()
        png = await alice.ask("a pond")
        with nobody_writes(tmp_path / "data" / "blobs"):
            deriving = asyncio.create_task(alice.ask("a pond", output_format="jpeg"))
            await asyncio.sleep(0.5)
            await take_down(alice, image_of(png))
        jpeg = await deriving
        await eventually(lambda: has_on_shelf(here, 1))

    assert jpeg.cache_status.startswith("fwd=miss; stored")
    assert len(await upstream.bodies()) == 2


async def test_a_question_that_was_taken_down_while_it_was_answered_stays_refused(
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


async def test_a_question_that_was_taken_down_is_not_answered_from_another_format(
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


async def test_bytes_go_when_their_store_is_back(tmp_path: Path, upstream: Upstream) -> None:
    """The take-down itself holds at once: it is the books that know of it."""
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

                async def is_tombstone() -> bool:
                    return await asyncio.to_thread(client.keys, "igw:blob:*") == []

                await eventually(is_tombstone)

    assert taken.status == 503


async def test_bytes_that_come_back_from_nowhere_are_not_counted_but_go(
    open_gateway: OpenGateway,
) -> None:
    """A folder that was away, say, when the others removed them."""
    async with open_gateway() as here:
        alice = await here.client.with_key()
        first = await alice.ask("a pond")
        await take_down(alice, image_of(first))
        await here.gateway.blob_store.put(digest_of(first), base64.b64decode(first.images[0]), 60)
        adopted = await here.gateway.cache.blobs.track_untracked()
        kept = await here.gateway.blob_store.get(digest_of(first))

    assert adopted == 0
    assert kept is None
