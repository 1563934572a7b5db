"""The books have memory that images never take, and a warning comes well before its end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import redis
import structlog.testing

from gateway.cache.books_memory import IMAGE_OVERHEAD_BYTES, measure_books
from gateway.images import Image, Record
from gateway.process.checks import _examine_store
from gateway.store.batch import execute
from gateway.store.commands import Append, LruTotals, MeasureStore, StoreUse
from tests.gateways import InProcess, Upstream, make_settings, run_gateway
from tests.pngs import write_png
from tests.redis_server import run_redis_server
from tests.waiting import eventually

MIB = 1 << 20
RECORD = Record("r", "r", 0.0, "alice", "k", outcome="bought", fingerprint="x" * 9000).encode()


def limit_memory(url: str, size_bytes: int) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", size_bytes)


def used_memory(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return client.info("memory")["used_memory"]


def count_keys(url: str, pattern: str) -> int:
    with redis.Redis.from_url(url) as client:
        return sum(1 for _ in client.scan_iter(pattern, count=1000))


@pytest.fixture
def small_redis(tmp_path: Path) -> Iterator[str]:
    """A Redis of 32 MiB with `noeviction`."""
    with run_redis_server(tmp_path) as url:
        limit_memory(url, 32 * MIB)
        yield url


async def fill_books(here: InProcess, size_bytes: int) -> None:
    """Adds so many bytes to the ledger."""
    for _ in range(size_bytes // len(RECORD) // 20):
        await execute(here.gateway.store, Append((RECORD,) * 20))


async def store_images(here: InProcess, count: int, *, size_bytes: int, first: int = 0) -> None:
    """Stores images as purchases do, each under a fingerprint of its own."""
    cache = here.gateway.cache.image_cache

    async def store_one(number: int) -> None:
        data = write_png(8, 8, Random(number).randbytes(size_bytes))
        digest = hashlib.sha256(data).hexdigest()
        fingerprint = hashlib.sha256(str(number).encode()).hexdigest()
        image = Image(f"i{number:023}", digest, "png", 8, 8, len(data), 0.0, "revised " * 20)
        await cache.store(fingerprint, {0: image}, {digest: data}, lease="")

    for batch in range(first, first + count, 20):
        await asyncio.gather(*(store_one(n) for n in range(batch, min(first + count, batch + 20))))


async def evict(here: InProcess) -> None:
    """One run of the job."""
    await here.gateway.books_memory.measure()
    await here.gateway.cache.blobs.evict_to_bound()


# ── the warning ─────────────────────────────────────────────────────────────────────────────


async def test_readyz_log_metric_and_doctor_warn_before_the_books_are_full(
    tmp_path: Path, upstream: Upstream, small_redis: str
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, small_redis)
    async with run_gateway(settings) as here:
        alice = await here.client.with_key("alice", limits={"images_per_day": 10})
        before = (await alice.send("GET", "/readyz")).json
        with structlog.testing.capture_logs() as logs:
            await fill_books(here, 12 * MIB)
            for _ in range(3):
                await here.gateway.books_memory.measure()
        during = await alice.send("GET", "/readyz")
        metrics = await alice.metrics()
        bought = await alice.ask()
        findings = await _examine_store(settings)
        with redis.Redis.from_url(small_redis) as client:
            client.unlink(*client.scan_iter("igw:{books}:ledger:*"))
        await eventually(lambda: used_memory(small_redis) < 8 * MIB)
        await here.gateway.books_memory.measure()
        after = (await alice.send("GET", "/readyz")).json

    assert before == after == {"status": "ready", "degraded": []}
    assert (during.status, during.json["degraded"]) == (200, ["books_memory"])
    assert list(during.json["reasons"]) == ["books_memory"], "the store answers"
    warnings = [line for line in logs if line["event"] == "books_memory_low"]
    assert len(warnings) == 1
    assert metrics["gateway_books_limit_bytes"] == 16 * MIB
    assert 0.8 * 16 * MIB <= metrics["gateway_books_bytes"] < 16 * MIB
    assert bought.status == 200  # the warning comes early
    assert [(f.name, f.level) for f in findings if f.level == "warning"] == [
        ("persistence", "warning"),
        ("books memory", "warning"),
    ]


async def test_the_embedded_store_measures_its_file_and_its_disk(
    tmp_path: Path, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url)
    async with run_gateway(settings) as here:
        before = await execute(here.gateway.store, MeasureStore())
        await fill_books(here, 4 * MIB)
        after = await execute(here.gateway.store, MeasureStore())
        ready = await here.client.send("GET", "/readyz")
    assert (before.kind, ready.json["degraded"]) == ("disk", [])
    assert after.used_bytes - before.used_bytes > 3 * MIB
    assert after.capacity_bytes > after.used_bytes


# ── images yield ────────────────────────────────────────────────────────────────────────────


async def test_images_yield_to_books_that_need_more_than_their_share(
    tmp_path: Path, upstream: Upstream, small_redis: str
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, small_redis)
    async with run_gateway(settings) as here:
        alice = await here.client.with_key("alice", limits={"usd_per_day": 100})
        await store_images(here, 60, size_bytes=MIB // 4 - 512)  # no rounding in Redis
        await fill_books(here, 10 * MIB)
        await evict(here)
        before = await here.gateway.cache.blobs.totals()
        await fill_books(here, 6 * MIB)
        await evict(here)
        await eventually(lambda: used_memory(small_redis) < 28.5 * MIB)
        after = await here.gateway.cache.blobs.totals()
        await fill_books(here, 10 * MIB)  # there is nothing left but headroom and images
        await evict(here)
        reply = await alice.ask()
        records = await here.ledger()

    assert 13 * MIB < before.size_bytes <= 16 * MIB
    assert 5 * MIB < after.size_bytes < before.size_bytes
    assert reply.status == 200
    assert records[-1].outcome == "bought"


@pytest.mark.parametrize("total_bytes", [None, "1GiB"])
async def test_small_images_with_all_that_they_leave_never_take_the_books_share(
    tmp_path: Path, upstream: Upstream, small_redis: str, total_bytes: str | None
) -> None:
    limit_memory(small_redis, 8 * MIB)
    cache = {"total_bytes": total_bytes, "memory_bytes": 0}
    settings = make_settings(tmp_path / "data", upstream.base_url, small_redis, cache=cache)
    async with run_gateway(settings) as here:
        empty = used_memory(small_redis)
        for first in range(0, 3000, 500):
            await store_images(here, 500, size_bytes=500, first=first)
            await evict(here)
        images = await here.gateway.cache.blobs.totals()
        share = 4 * MIB if total_bytes is None else 6 * MIB
        # An evicted image leaves a record of 430 bytes, while a link to it may be open.
        left = 500 * (3000 - images.count)
        await eventually(lambda: used_memory(small_redis) - empty < share * 1.05 + left)
        use = await here.gateway.books_memory.measure()
        entries = count_keys(small_redis, "igw:entry:*")

    assert images.count < 2500
    assert entries == images.count
    assert use.books_bytes < use.limit_bytes


async def test_entries_are_bounded_although_the_bytes_are_elsewhere(
    tmp_path: Path, upstream: Upstream, small_redis: str, redis_url: str
) -> None:
    """In another Redis, which stores thousands of images sooner than a folder does."""
    limit_memory(small_redis, 8 * MIB)
    store = {"blobs_url": redis_url}
    settings = make_settings(tmp_path / "data", upstream.base_url, small_redis, store=store)
    async with run_gateway(settings) as here:
        for first in range(0, 2500, 500):
            await store_images(here, 500, size_bytes=100, first=first)
            await evict(here)
        images = await here.gateway.cache.blobs.totals()
        use = await here.gateway.books_memory.measure()
    assert images.count * IMAGE_OVERHEAD_BYTES <= 4 * MIB
    assert images.count > 1200
    assert use.books_bytes < use.limit_bytes


async def test_an_evicted_image_leaves_no_entry_and_its_links_answer_410(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    settings = make_settings(
        tmp_path / "data", upstream.base_url, store_url, cache={"memory_bytes": 0}
    )
    async with run_gateway(settings) as here:
        alice = await here.client.with_key()
        first = await alice.ask(model="dall-e-3", response_format="url")
        fingerprint = first.headers["Cache-Status"].partition('key="')[2].rstrip('"')
        here.gateway.cache.blobs.yield_to_books(0)
        await here.gateway.cache.blobs.evict_to_bound()
        entry = await here.gateway.cache.image_cache.entry(fingerprint)
        async with alice.session.get(first.json["data"][0]["url"]) as response:
            status = response.status
        here.gateway.cache.blobs.yield_to_books(None)
        again = await alice.ask(model="dall-e-3", response_format="url")
    assert not entry.slots
    assert (status, again.cache_status) == (410, "fwd=miss; stored")


# ── the arithmetic ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("used", "images", "bound", "shares", "books", "limit", "allowed"),
    [
        # Few books: images may have their share.
        (60, LruTotals(10, 40 * MIB), 50, True, 20, 50, 50),
        (100, LruTotals(10, 90 * MIB), 90, True, 10, 25, 75),
        (100, LruTotals(10, 10 * MIB), 10, True, 90, 50, 0),
        (60, LruTotals(10, 10 * MIB), 10, True, 50, 50, 37.5),
        # Bytes elsewhere: only what entries take counts.
        (20, LruTotals(MIB // 340, 800 * MIB), 10_000, False, 10, 50, 4000),
        (98, LruTotals(MIB // 340, 800 * MIB), 10_000, False, 88, 50, 0),
    ],
)
def test_what_books_use_and_images_may_use(
    used: int,
    images: LruTotals,
    bound: int,
    books: float,
    limit: float,
    allowed: float,
    *,
    shares: bool,
) -> None:
    store_use = StoreUse("memory", used * MIB, 100 * MIB)
    use = measure_books(store_use, images, bound_bytes=bound * MIB, shares_bytes=shares)
    assert use.books_bytes / MIB == pytest.approx(books, abs=0.1)
    assert use.limit_bytes / MIB == pytest.approx(limit, abs=0.1)
    assert use.images_bytes is not None
    assert use.images_bytes / MIB == pytest.approx(allowed, abs=0.2)


def test_a_disk_that_is_nearly_full_is_low_and_images_leave_room() -> None:
    images = LruTotals(10, 1000 * MIB)
    roomy = StoreUse("disk", 10 * MIB, 5000 * MIB)
    use = measure_books(roomy, images, bound_bytes=10 << 30, shares_bytes=True)
    assert (use.is_low, use.images_bytes > images.size_bytes) == (False, True)
    full = StoreUse("disk", 10 * MIB, 60 * MIB)
    use = measure_books(full, images, bound_bytes=10 << 30, shares_bytes=True)
    assert (use.is_low, use.images_bytes < images.size_bytes) == (True, True)
    elsewhere = measure_books(full, images, bound_bytes=10 << 30, shares_bytes=False)
    assert (elsewhere.is_low, elsewhere.images_bytes) == (True, None)
