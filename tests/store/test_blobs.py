"""What every keeper of picture bytes promises: `verbs.BlobStore`, on each adapter."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from gateway.store.verbs import BlobStore

BINARY = bytes(range(256)) + b"\r\n\x00"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_unknown_bytes_are_none(blobs: BlobStore) -> None:
    assert await blobs.get(digest(b"unknown")) is None


@pytest.mark.parametrize(
    "data", [BINARY, b"", os.urandom(5_000_000)], ids=["bytes", "none", "5 MB"]
)
async def test_bytes_come_back_as_they_were(blobs: BlobStore, data: bytes) -> None:
    await blobs.put(digest(data), data, 60)
    assert await blobs.get(digest(data)) == data


async def test_bytes_live_for_their_time(blobs: BlobStore) -> None:
    await blobs.put(digest(BINARY), BINARY, 0.2)
    assert await blobs.get(digest(BINARY)) == BINARY
    await asyncio.sleep(0.3)
    assert await blobs.get(digest(BINARY)) is None


async def test_a_repetition_only_prolongs(blobs: BlobStore) -> None:
    for lifetime in (0.1, 60, 0.1):
        await blobs.put(digest(BINARY), BINARY, lifetime)
    await asyncio.sleep(0.2)
    assert await blobs.get(digest(BINARY)) == BINARY


async def test_deleted_bytes_are_gone(blobs: BlobStore) -> None:
    await blobs.put(digest(BINARY), BINARY, 60)
    for _ in range(2):
        await blobs.delete(digest(BINARY))
    assert await blobs.get(digest(BINARY)) is None


async def test_many_at_once_do_not_disturb_each_other(blobs: BlobStore) -> None:
    pictures = [str(i % 10).encode() * 10_000 for i in range(50)]
    await asyncio.gather(*(blobs.put(digest(data), data, 60) for data in pictures))
    assert await asyncio.gather(*(blobs.get(digest(data)) for data in pictures)) == pictures
