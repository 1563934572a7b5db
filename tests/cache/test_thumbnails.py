"""Thumbnails: made once, cached within a bound, and never of what was taken down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.cache import thumbnails
from gateway.cache.thumbnails import Thumbnails
from gateway.errors import GatewayError
from gateway.simulator.drawing import draw_image
from gateway.store.protocol import Store
from gateway.store.sqlite.store import open_sqlite_store
from gateway.wiring.cache import Cache
from tests.cache.test_image_search import make_cache, make_image, store_image

PNGS = [draw_image("an otter", format="png", seed=n, width=64, height=64) for n in range(4)]
DIGESTS = [sha256(png).hexdigest() for png in PNGS]


@pytest.fixture
async def store(sqlite_path: Path) -> AsyncIterator[Store]:
    async with open_sqlite_store(sqlite_path) as opened:
        yield opened


@pytest.fixture
async def cache(tmp_path: Path, store: Store) -> AsyncIterator[Cache]:
    """With the images of `PNGS`."""
    opened = make_cache(tmp_path, store)
    for png in PNGS:
        await opened.blobs.put(sha256(png).hexdigest(), png)
    yield opened
    await opened.thumbnails.close()


async def test_a_thumbnail_is_made_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = thumbnails.ThumbnailProcess.make

    def counted(process: thumbnails.ThumbnailProcess, data: bytes) -> bytes | None:
        made.append(len(data))
        return make(process, data)

    monkeypatch.setattr(thumbnails.ThumbnailProcess, "make", counted)
    loads = [cache.thumbnails.load(digest, "png") for digest in DIGESTS * 5]
    found = await asyncio.gather(*loads)
    assert all(one is not None and one[8:12] == b"WEBP" for one in found)
    assert len(set(found)) == len(made) == len(PNGS)
    assert await cache.thumbnails.load(DIGESTS[0], "png") == found[0]
    assert len(made) == len(PNGS)


async def test_no_image_counts_as_used_because_of_its_thumbnail(cache: Cache) -> None:
    await cache.blobs.record_uses()
    await cache.thumbnails.load(DIGESTS[0], "png")
    assert cache.blobs._used == {}
    assert len(cache.blobs._memory) == 0


async def test_the_cache_of_thumbnails_is_bounded(cache: Cache) -> None:
    one = await cache.thumbnails.load(DIGESTS[0], "png")
    assert one is not None
    small = Thumbnails(cache.blobs, max_pixels=1 << 20, max_memory_bytes=2 * len(one) + 10)
    for digest in DIGESTS:
        await small.load(digest, "png")
    await small.close()
    assert 1 <= len(small._cached) <= 2
    assert small._size_bytes == sum(map(len, small._cached.values())) <= 2 * len(one) + 10


async def test_lost_and_foreign_bytes_have_none(cache: Cache) -> None:
    assert await cache.thumbnails.load("0" * 64, "png") is None
    assert await cache.thumbnails.load(DIGESTS[0], "svg") == b""
    text = b"no image"
    await cache.blobs.put(sha256(text).hexdigest(), text)
    assert await cache.thumbnails.load(sha256(text).hexdigest(), "png") == b""


async def test_a_take_down_holds_for_the_thumbnail(tmp_path: Path, store: Store) -> None:
    cache, stored = make_cache(tmp_path, store), make_image()
    stored = replace(stored, data=PNGS[0], image=replace(stored.image, digest=DIGESTS[0]))
    await store_image(cache, store, stored)
    assert await cache.thumbnails.load(DIGESTS[0], "png")
    await cache.invalidation.take_down(stored.image.id)
    assert await cache.thumbnails.load(DIGESTS[0], "png") is None
    await cache.thumbnails.close()


async def test_a_crash_is_logged_and_the_next_one_is_made(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr("sys.executable", "/bin/false")
        assert await cache.thumbnails.load(DIGESTS[0], "png") == b""
    assert [line["event"] for line in logs] == ["thumbnail_failed"]
    assert await cache.thumbnails.load(DIGESTS[1], "png")


async def test_idle_processes_end(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = list(cache.thumbnails._makers._queue)
    await cache.thumbnails.load(DIGESTS[0], "png")
    await cache.thumbnails.end_idle()
    assert any(maker.process._process is not None for maker in makers)
    monkeypatch.setattr(thumbnails, "IDLE_SECONDS", 0.0)
    await cache.thumbnails.end_idle()
    assert all(maker.process._process is None for maker in makers)


async def test_too_many_at_once_are_refused(cache: Cache) -> None:
    cache.thumbnails._waiting._maximum = 2
    loads = [cache.thumbnails.load(digest, "png") for digest in DIGESTS]
    found = await asyncio.gather(*loads, return_exceptions=True)
    refused = [each for each in found if isinstance(each, GatewayError)]
    assert [each.status for each in refused] == [503, 503]
