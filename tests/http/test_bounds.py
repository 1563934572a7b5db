"""The cache's bounds: only images are evicted, and damaged images are never served."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import orjson
import pytest
import redis
from aiohttp import web

from tests.gateways import Client, InProcess, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.local_server import serve
from tests.pngs import write_png
from tests.redis_masters import open_masters
from tests.redis_server import run_redis_server
from tests.stores import TOPOLOGIES

MIB = 1 << 20
IMAGE_BYTES = MIB
TOTAL_BYTES = 10 * MIB


def fat_png(size_bytes: int, seed: int) -> bytes:
    """A PNG of any size that passes every check."""
    return write_png(1024, 1024, Random(seed).randbytes(size_bytes))


@asynccontextmanager
async def run_fat_upstream(size_bytes: int = IMAGE_BYTES) -> AsyncIterator[str]:
    """An upstream with large images. The prompt is a number, the seed of its image."""
    usage = {"input_tokens": 7, "output_tokens": 272, "total_tokens": 279}

    async def generate(request: web.Request) -> web.Response:
        seed = int((await request.json())["prompt"])
        data = base64.b64encode(fat_png(size_bytes, seed)).decode()
        body = orjson.dumps({"created": 1, "data": [{"b64_json": data}], "usage": usage})
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/images/generations", generate)
    async with serve(app) as url:
        yield f"{url}/v1"


def size_of(path: Path) -> int:
    """The size of a file, 0 if it was deleted meanwhile."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def stored_bytes(url: str | None, folder: Path) -> int:
    """The bytes of all images, measured in the store itself."""
    if url is None:
        return sum(map(size_of, folder.glob("blobs/??/*")))
    with open_masters(url) as masters:
        return sum(
            master.strlen(key)
            for master in masters
            for key in master.scan_iter("igw:blob:*", count=1000)
        )


@asynccontextmanager
async def measuring(url: str | None, folder: Path) -> AsyncIterator[list[int]]:
    """Measures `stored_bytes` all the time, also during purchases."""
    sizes: list[int] = []

    async def measure() -> None:
        while True:
            sizes.append(await asyncio.to_thread(stored_bytes, url, folder))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(measure())
    try:
        yield sizes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(params=["sqlite", "redis"])
def bounded_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """The embedded store, or a Redis with `noeviction`."""
    if request.param == "sqlite":
        yield None
        return
    with run_redis_server(tmp_path) as url:
        limit_memory(url, 40 * MIB)
        yield url


def limit_memory(url: str, size_bytes: int) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", size_bytes)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("purchases", [50, pytest.param(100, marks=pytest.mark.long)])
async def test_images_stay_within_their_bound(
    tmp_path: Path, bounded_url: str | None, purchases: int
) -> None:
    """Purchases exceed it many times. The latest are hits, and the ledger is complete."""
    folder = tmp_path / "data"
    async with run_fat_upstream() as upstream:
        settings = make_settings(
            folder, upstream, bounded_url, cache={"total_bytes": TOTAL_BYTES, "memory_bytes": 0}
        )
        async with run_gateway(settings) as here:
            alice = await here.client.with_key("alice", limits={"images_per_day": 1000})
            async with measuring(bounded_url, folder) as sizes:
                replies = [await alice.ask(str(number)) for number in range(purchases)]
            recent = [await alice.ask(str(n)) for n in range(purchases - 5, purchases)]
            records = await here.ledger()
            metrics = await alice.metrics()

    assert {reply.status for reply in replies} == {200}
    assert len(sizes) >= 10
    assert TOTAL_BYTES - IMAGE_BYTES < max(sizes) <= TOTAL_BYTES + IMAGE_BYTES + 1024
    assert [reply.cache_status[:3] for reply in recent] == ["hit"] * 5
    assert [r.outcome for r in records] == ["bought"] * purchases + ["hit"] * 5
    assert sum(r.cost_micros for r in records) == purchases * records[0].cost_micros
    evictions = metrics["gateway_cache_evictions_total"]
    assert purchases - TOTAL_BYTES // IMAGE_BYTES <= evictions < purchases


@pytest.mark.timeout(120)
async def test_recently_used_images_are_not_evicted(
    tmp_path: Path, bounded_url: str | None
) -> None:
    """The memory cache is off: it would serve images that the store has evicted."""
    cache = {"total_bytes": 8 * (IMAGE_BYTES + 1024), "memory_bytes": 0}
    async with run_fat_upstream() as upstream:
        settings = make_settings(tmp_path / "data", upstream, bounded_url, cache=cache)
        async with run_gateway(settings) as here:
            alice = await here.client.with_key()
            for number in range(6):
                await alice.ask(str(number))
            await alice.ask("0")
            await here.gateway.cache.blobs.record_uses()
            for number in range(6, 12):
                await alice.ask(str(number))
            used, unused = await alice.ask("0"), await alice.ask("1")

    assert used.cache_status.startswith("hit")
    assert unused.cache_status == "fwd=miss; stored"


@pytest.mark.timeout(120)
async def test_if_redis_is_full_only_images_are_evicted(tmp_path: Path) -> None:
    """The bound exceeds its memory: when Redis refuses a write, the gateway evicts images."""
    with run_redis_server(tmp_path) as url:
        limit_memory(url, 20 * MIB)
        async with run_fat_upstream() as upstream:
            settings = make_settings(
                tmp_path / "data", upstream, url, cache={"total_bytes": 1 << 30}
            )
            async with run_gateway(settings) as here:
                alice = await here.client.with_key()
                replies = [await alice.ask(str(number)) for number in range(40)]
                last = await alice.ask("39")
                records = await here.ledger()

    assert {reply.status for reply in replies} == {200}
    assert {reply.cache_status for reply in replies} == {"fwd=miss; stored"}
    assert last.cache_status.startswith("hit")
    assert [r.outcome for r in records].count("bought") == 40


@pytest.fixture(params=["redis", *TOPOLOGIES])
def blobs_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A Redis for images alone, which may evict them."""
    if request.param != "redis":
        yield request.getfixturevalue(f"{request.param}_url")
        return
    with run_redis_server(tmp_path) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        yield url


async def test_images_may_have_a_redis_of_their_own(
    tmp_path: Path, upstream: Upstream, redis_url: str, blobs_url: str
) -> None:
    settings = make_settings(
        tmp_path / "data", upstream.base_url, redis_url, store={"blobs_url": blobs_url}
    )
    async with run_gateway(settings) as here:
        alice = await here.client.with_key()
        first, second = await alice.ask(), await alice.ask()
        with open_masters(blobs_url) as masters:
            keys = [key for master in masters for key in master.scan_iter("*")]
            for master in masters:
                master.flushall()
        again = await alice.ask(headers={"Cache-Control": "max-age=1000"})

    assert (first.status, second.cache_status[:3]) == (200, "hit")
    assert any(key.startswith(b"igw:blob:") for key in keys)
    assert not any(b"{books}" in key for key in keys)
    with redis.Redis.from_url(redis_url) as client:
        assert not list(client.scan_iter("igw:blob:*"))
    assert again.status == 200


async def test_images_may_be_in_a_folder_while_the_store_is_redis(
    tmp_path: Path, upstream: Upstream, redis_url: str
) -> None:
    settings = make_settings(
        tmp_path / "data",
        upstream.base_url,
        redis_url,
        store={"blobs_url": f"file://{tmp_path}/images"},
    )
    async with run_gateway(settings) as here:
        alice = await here.client.with_key()
        await alice.ask()
        again = await alice.ask()
    assert again.cache_status.startswith("hit")
    assert [path for path in (tmp_path / "images").glob("??/*") if path.is_file()]


# ── damaged and untracked images ────────────────────────────────────────────────────────────


def damage(url: str | None, folder: Path) -> None:
    """Flips one byte in the middle of every stored image."""

    def flip(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    if url is None:
        for path in [path for path in folder.glob("blobs/??/*") if path.is_file()]:
            stat = path.stat()
            path.write_bytes(flip(path.read_bytes()))
            os.utime(path, (stat.st_atime, stat.st_mtime))
        return
    with open_masters(url) as masters:
        for master in masters:
            for key in master.scan_iter("igw:blob:*"):
                master.set(key, flip(master.get(key)), keepttl=True)


async def test_a_damaged_image_is_bought_again_and_never_served(
    open_gateway: OpenGateway, store_url: str | None, tmp_path: Path, upstream: Upstream
) -> None:
    async with open_gateway(cache={"memory_bytes": 0}) as here:
        alice = await here.client.with_key()
        first = await alice.ask("a pond", model="dall-e-3")
        damage(store_url, tmp_path / "data")
        async with alice.session.get(first.json["data"][0]["url"]) as response:
            status = response.status
        again = await alice.ask("a pond", model="dall-e-3")
        metrics = await alice.metrics()

    assert status == 410
    assert again.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 2
    assert metrics["gateway_cache_damaged_total"] == 1


async def test_untracked_bytes_are_tracked_by_the_next_scan(
    gateway: InProcess, alice: Client
) -> None:
    await alice.ask("a pond")
    blobs = gateway.gateway.cache.blobs
    before = await blobs.totals()
    stray = fat_png(1000, 1)
    digest = hashlib.sha256(stray).hexdigest()
    await gateway.gateway.blob_store.put(digest, stray, 60)
    tracked = await blobs.track_untracked()
    after = await blobs.totals()

    assert tracked == 1
    assert (after.count, after.size_bytes) == (before.count + 1, before.size_bytes + len(stray))
    assert await blobs.track_untracked() == 0


# ── the memory cache ────────────────────────────────────────────────────────────────────────


async def test_an_image_in_memory_is_a_hit_without_the_store_and_memory_stays_bounded(
    tmp_path: Path,
) -> None:
    async with run_fat_upstream(MIB) as upstream:
        settings = make_settings(tmp_path, upstream, cache={"memory_bytes": 6 * MIB})
        async with run_gateway(settings) as here:
            alice = await here.client.with_key()
            for number in range(12):
                await alice.ask(str(number))
            memory = here.gateway.cache.blobs._memory
            size = memory.size_bytes
            for path in (tmp_path / "blobs").glob("??/*"):
                path.unlink()
            newest, oldest = await alice.ask("11"), await alice.ask("0")

    assert 0 < size <= 6 * MIB
    assert newest.cache_status.startswith("hit")
    assert oldest.cache_status == "fwd=miss; stored"
