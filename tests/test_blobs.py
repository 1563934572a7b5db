"""The bound of image bytes: what goes for it, and what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.cache.blobs import Blobs, BlobsSettings
from gateway.cache.memory import MemoryCache
from gateway.cache.takedowns import Takedowns
from gateway.images import Image
from gateway.metrics import Metrics
from gateway.store.batch import Batch, execute
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.commands import ReadLruTotals, Track
from gateway.store.protocol import Store
from tests.conftest import OpenStore

GIB = 1 << 30
A_DAY = 86_400.0


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


def blobs_in(
    folder: Path, store: Store, total_bytes: int | None, *, takedowns: Takedowns | None = None
) -> Blobs:
    """A worker's blobs, just constructed."""
    settings, place = BlobsSettings(total_bytes=total_bytes), FolderBlobs(folder / "blobs")
    takedowns = Takedowns(store) if takedowns is None else takedowns
    return Blobs(
        settings, place, store, memory=MemoryCache(0), takedowns=takedowns, observer=Metrics().cache
    )


async def track(store: Store, *sizes_bytes: int) -> None:
    """Counts images that nobody has stored: only their sizes matter here."""
    batch = Batch(store)
    for number, size_bytes in enumerate(sizes_bytes):
        batch.add(Track(digest_of(number), size_bytes, A_DAY, 1 << 50))
    await batch.execute()


def digest_of(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


async def test_nothing_goes_before_the_bound_is_known(tmp_path: Path, store: Store) -> None:
    """A worker that starts while the place of the bytes is away knows less than there may be."""
    await track(store, GIB, GIB)
    blobs, batch = blobs_in(tmp_path, store, None), Batch(store)
    image = Image("a", digest_of(2), "png", 1, 1, 1000, 0.0)
    (gone,) = blobs.track(batch, [image])
    await batch.execute()

    assert gone.value == []
    assert (await execute(store, ReadLruTotals())).count == 3


async def test_a_lowered_bound_holds_however_many_have_to_go(tmp_path: Path, store: Store) -> None:
    await track(store, *[1] * 2500)
    await blobs_in(tmp_path, store, 10).evict_to_bound()
    assert (await execute(store, ReadLruTotals())).size_bytes == 10


async def test_bytes_that_nobody_has_hashed_are_known_when_they_were_taken_down(
    tmp_path: Path, store: Store
) -> None:
    """Hashing them is spared as long as nothing is taken down; what is stored is hashed anyway."""
    takedowns = Takedowns(store)
    blobs = blobs_in(tmp_path, store, GIB, takedowns=takedowns)
    before = await blobs.are_taken_down(b"an otter")
    takedowns.add(Batch(store), [await blobs.put_ephemeral(b"an otter")])
    after = await blobs.are_taken_down(b"an otter")

    assert (before, after) == (False, True)
    assert not await blobs.are_taken_down(b"a pond")
