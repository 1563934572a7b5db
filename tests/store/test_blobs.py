"""The contract of `protocol.BlobStore`, on each adapter."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from gateway.configuration.fields import parse_blobs_url
from gateway.store.batch import Batch
from gateway.store.blobs import OPENERS, open_blob_store
from gateway.store.blobs.redis import SMALL_BYTES, open_redis_blobs
from gateway.store.protocol import BlobStore
from gateway.store.redis.store import open_redis_store

BINARY = bytes(range(256)) + b"\r\n\x00"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_an_unknown_digest_is_none(blobs: BlobStore) -> None:
    assert await blobs.get(digest(b"unknown")) is None


@pytest.mark.parametrize(
    "data", [BINARY, b"", os.urandom(5_000_000)], ids=["bytes", "none", "5 MB"]
)
async def test_bytes_are_returned_unchanged(blobs: BlobStore, data: bytes) -> None:
    await blobs.put(digest(data), data, 60)
    assert await blobs.get(digest(data)) == data


async def test_a_blob_expires_after_its_time_to_live(blobs: BlobStore) -> None:
    await blobs.put(digest(BINARY), BINARY, 0.1)
    await blobs.put(digest(b"long"), b"long", 60)
    await asyncio.sleep(0.2)
    assert await blobs.get(digest(BINARY)) is None
    assert await blobs.get(digest(b"long")) == b"long"


async def test_putting_again_never_shortens_the_time_to_live(blobs: BlobStore) -> None:
    for ttl in (0.1, 60, 0.1):
        await blobs.put(digest(BINARY), BINARY, ttl)
    await asyncio.sleep(0.2)
    assert await blobs.get(digest(BINARY)) == BINARY


async def test_a_deleted_blob_is_none(blobs: BlobStore) -> None:
    await blobs.put(digest(BINARY), BINARY, 60)
    for _ in range(2):
        await blobs.delete(digest(BINARY))
    assert await blobs.get(digest(BINARY)) is None


async def test_a_blob_store_outside_the_store_has_no_command(blobs: BlobStore) -> None:
    assert blobs.put_command(digest(BINARY), BINARY, 60) is None


async def test_small_blobs_are_stored_in_a_batch_of_the_same_redis(redis_url: str) -> None:
    """Putting them again never shortens their time to live, as with `put`."""
    large = bytes(SMALL_BYTES + 1)
    async with (
        open_redis_store(redis_url) as store,
        open_redis_blobs(redis_url, shares_server=True) as blobs,
    ):
        batch = Batch(store)
        assert blobs.put_command(digest(large), large, 60) is None
        for ttl in (0.1, 60, 0.1):
            command = blobs.put_command(digest(BINARY), BINARY, ttl)
            assert command is not None
            batch.add(command)
        await batch.execute()
        await asyncio.sleep(0.2)

        assert await blobs.get(digest(BINARY)) == BINARY
        assert await blobs.get(digest(large)) is None


async def test_anything_but_a_digest_is_refused(redis_url: str) -> None:
    async with (
        open_redis_store(redis_url),
        open_redis_blobs(redis_url, shares_server=True) as blobs,
    ):
        with pytest.raises(ValueError, match="SHA-256"):
            blobs.put_command("schema", BINARY, 60)


async def test_concurrent_calls_do_not_disturb_each_other(blobs: BlobStore) -> None:
    images = [str(i % 10).encode() * 10_000 for i in range(50)]
    await asyncio.gather(*(blobs.put(digest(data), data, 60) for data in images))
    assert await asyncio.gather(*(blobs.get(digest(data)) for data in images)) == images


async def _all_sizes(blobs: BlobStore, *, limit: int) -> dict[str, int]:
    """All digests with their sizes, page by page."""
    found: dict[str, int] = {}
    after: str | None = ""
    while after is not None:
        after, page = await blobs.scan(after, limit)
        found |= page
    return found


async def test_an_empty_store_has_nothing_to_scan(blobs: BlobStore) -> None:
    assert await _all_sizes(blobs, limit=10) == {}


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
async def test_a_scan_finds_all_unexpired_blobs_with_their_sizes(
    blobs: BlobStore, limit: int
) -> None:
    images = {digest(b"%d" % i): b"x" * i for i in range(60)}
    for name, data in images.items():
        await blobs.put(name, data, 60)
    await blobs.put(digest(b"expired"), b"expired", 0.1)
    await blobs.put(digest(b"deleted"), b"deleted", 60)
    await blobs.delete(digest(b"deleted"))
    await asyncio.sleep(0.2)
    sizes = {name: len(data) for name, data in images.items()}
    assert await _all_sizes(blobs, limit=limit) == sizes


async def test_a_scan_finds_all_blobs_that_exist_throughout_it(blobs: BlobStore) -> None:
    kept = [digest(b"stays %d" % i) for i in range(30)]
    deleted = [digest(b"goes %d" % i) for i in range(30)]
    for name in (*kept, *deleted):
        await blobs.put(name, b"data", 60)
    found: set[str] = set()
    after: str | None = ""
    while after is not None:
        after, page = await blobs.scan(after, 5)
        found |= page.keys()
        if deleted:
            await blobs.delete(deleted.pop())
            await blobs.put(digest(b"comes %d" % len(deleted)), b"data", 60)
    assert found >= set(kept)


async def test_the_capacity_is_a_number_or_unlimited(blobs: BlobStore) -> None:
    # Of a cluster the sum of its masters.
    assert await blobs.capacity_bytes() in (None, 1 << 30, 3 << 30)


async def test_ephemeral_blobs_are_separate_and_no_scan_finds_them(blobs: BlobStore) -> None:
    one, two, expired = digest(b"one"), digest(b"two"), digest(b"over")
    await blobs.ephemeral().put(one, b"ephemeral", 60)
    await blobs.ephemeral().put(expired, b"expired", 0.1)
    await blobs.ephemeral().put(two, b"ephemeral too", 60)
    await blobs.put(two, b"an image", 60)

    assert await blobs.get(one) is None
    assert await _all_sizes(blobs, limit=500) == {two: len(b"an image")}
    assert await blobs.ephemeral().get(two) == b"ephemeral too"
    assert await blobs.ephemeral().get(one) == b"ephemeral"
    await asyncio.sleep(0.2)
    assert await blobs.ephemeral().get(expired) is None
    await blobs.ephemeral().delete(two)
    assert await blobs.get(two) == b"an image"


@pytest.mark.parametrize("scheme", ["file", "redis"])
async def test_a_blob_store_is_opened_by_the_scheme_of_its_url(
    scheme: str, tmp_path: Path, redis_url: str
) -> None:
    url = redis_url if scheme == "redis" else f"file://{tmp_path}/of%20images"
    for expected in (None, BINARY):
        async with open_blob_store(url) as blobs:
            assert await blobs.get(digest(BINARY)) == expected
            await blobs.put(digest(BINARY), BINARY, 60)
    assert (tmp_path / "of images").exists() == (scheme == "file")
    assert scheme in OPENERS


@pytest.mark.parametrize("scheme", OPENERS)
async def test_every_scheme_that_the_settings_accept_has_an_opener(
    scheme: str, tmp_path: Path
) -> None:
    rest = {
        "file": f"{tmp_path}/images",
        "unix": f"{tmp_path}/redis.sock",
        "redis+sentinel": "host/service/0",
        "az": "container?account=example",
    }.get(scheme, "host")
    url = f"{scheme}://{rest}"
    assert parse_blobs_url(url) == url
    async with open_blob_store(url):
        pass


@pytest.mark.parametrize("url", ["ftp://:hunter2@host/", "hunter2", ""])
def test_another_scheme_is_refused_without_quoting_the_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"begins with one of redis://, .*, az://\.$"):
        open_blob_store(url)
