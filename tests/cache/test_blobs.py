"""The bound of image bytes, evictions, and take-downs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.cache.blobs import Blobs, BlobsSettings
from gateway.cache.ephemeral_blobs import EphemeralBlobs
from gateway.cache.takedowns import Takedowns
from gateway.images import Image
from gateway.metrics import Metrics
from gateway.store.batch import Batch, execute
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.commands import AreTracked, ReadLruTotals, Track
from gateway.store.protocol import Store
from tests.conftest import OpenStore

GIB = 1 << 30
A_DAY = 86_400.0


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


def make_blobs(folder: Path, store: Store, total_bytes: int | None) -> Blobs:
    """The blobs of a worker that has just started."""
    return Blobs(
        BlobsSettings(total_bytes=total_bytes),
        FolderBlobs(folder / "blobs"),
        store,
        takedowns=Takedowns(store),
        observer=Metrics().cache,
    )


async def track(store: Store, *sizes_bytes: int) -> None:
    """Tracks images without storing them: only their sizes matter here."""
    batch = Batch(store)
    for number, size_bytes in enumerate(sizes_bytes):
        batch.add(Track(digest_of(number), size_bytes, A_DAY, 1 << 50))
    await batch.execute()


def digest_of(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


async def test_nothing_is_evicted_before_the_bound_is_known(tmp_path: Path, store: Store) -> None:
    """A worker that starts while the blob store is unavailable does not know its capacity."""
    await track(store, GIB, GIB)
    blobs, batch = make_blobs(tmp_path, store, None), Batch(store)
    image = Image("a", digest_of(2), "png", 1, 1, 1000, 0.0)
    (evicted,) = blobs.track(batch, [image])
    await batch.execute()

    assert evicted.value == []
    assert (await execute(store, ReadLruTotals())).count == 3


async def test_a_lowered_bound_is_met_even_if_thousands_are_evicted(
    tmp_path: Path, store: Store
) -> None:
    await track(store, *[1] * 2500)
    await make_blobs(tmp_path, store, 10).evict_to_bound()
    assert (await execute(store, ReadLruTotals())).size_bytes == 10


async def test_a_use_before_an_image_was_stored_counts_as_earlier(
    tmp_path: Path, store: Store
) -> None:
    """Uses are written in batches: an earlier use may be written after the image was stored."""
    blobs = make_blobs(tmp_path, store, 2)

    async def track_image(number: int) -> list[str]:
        batch = Batch(store)
        (evicted,) = blobs.track(batch, [Image("a", digest_of(number), "png", 1, 1, 1, 0.0)])
        await batch.execute()
        return list(evicted.value)

    await track_image(0)
    await blobs.load(digest_of(0), "raw", data=b"0")
    await track_image(1)
    await blobs.record_uses()

    assert await track_image(2) == [digest_of(0)]


async def test_bytes_without_a_digest_are_recognized_as_taken_down(
    tmp_path: Path, store: Store
) -> None:
    """Bytes are hashed only if the take-down list is not empty."""
    takedowns = Takedowns(store)
    ephemeral = make_ephemeral(tmp_path, store, takedowns, bound_bytes=1 << 20)
    before = await ephemeral.are_taken_down(b"an otter")
    digest = await ephemeral.put(b"an otter")
    takedowns.add(Batch(store), [digest or ""])
    after = await ephemeral.are_taken_down(b"an otter")

    assert (before, after) == (False, True)
    assert not await ephemeral.are_taken_down(b"a pond")


def make_ephemeral(
    tmp_path: Path, store: Store, takedowns: Takedowns, *, bound_bytes: int
) -> EphemeralBlobs:
    """Ephemeral blobs beside images that may have `bound_bytes`."""

    async def read_bound() -> int:
        return bound_bytes

    blob_store = FolderBlobs(tmp_path / "blobs")
    return EphemeralBlobs(store, blob_store, takedowns, bound_bytes=read_bound)


async def test_partial_images_have_a_bound_beside_that_of_images(
    tmp_path: Path, store: Store
) -> None:
    """The oldest go first, and no image goes for them."""
    ephemeral = make_ephemeral(tmp_path, store, Takedowns(store), bound_bytes=1600)
    await execute(store, Track("an image", 1600, 60.0, 1600))
    stored = [await ephemeral.put(bytes([n]) * 12) for n in range(10)]

    found = [await ephemeral.load(digest or "") is not None for digest in stored]
    assert found == [False, False] + [True] * 8
    assert await execute(store, AreTracked(("an image",))) == [True]


async def test_a_partial_image_that_is_too_large_is_not_stored(
    tmp_path: Path, store: Store
) -> None:
    ephemeral = make_ephemeral(tmp_path, store, Takedowns(store), bound_bytes=1600)

    assert await ephemeral.put(bytes(13)) is None
    assert await ephemeral.put(bytes(12)) is not None
