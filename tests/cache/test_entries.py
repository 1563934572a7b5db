"""Entries: how long their images are fresh."""

from __future__ import annotations

from gateway.cache.entries import Entries, EntriesSettings, fresh_images
from gateway.images import Image
from gateway.store.batch import Batch
from tests.conftest import OpenStore

IMAGE = Image("a", "0" * 64, "png", 1, 1, 1, 0.0)


async def test_a_lifetime_below_a_second_is_not_replaced_by_the_default(
    open_store: OpenStore,
) -> None:
    """As of an image that is transcoded in the last second of the original."""
    entries = Entries(EntriesSettings())
    async with open_store() as store:
        batch = Batch(store)
        entries.store(batch, "f", "a flight", images={0: IMAGE}, ttl_seconds=0)
        entry = entries.look_up(batch, "f")
        await batch.execute()
    assert fresh_images(entry.value, [0]) == {}
