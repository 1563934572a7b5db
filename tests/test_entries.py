"""Entries: how long what they keep is fresh."""

from __future__ import annotations

from gateway.cache.entries import Entries, EntriesSettings, fresh_images
from gateway.images import Image
from gateway.store.batch import Batch
from tests.conftest import OpenStore

IMAGE = Image("a", "0" * 64, "png", 1, 1, 1, 0.0)


async def test_what_has_less_than_a_second_left_is_not_kept_for_a_whole_life(
    open_store: OpenStore,
) -> None:
    """As an image that is derived from one in its last second."""
    entries = Entries(EntriesSettings())
    async with open_store() as store:
        batch = Batch(store)
        entries.store(batch, "f", "a flight", images={0: IMAGE}, ttl_seconds=0)
        kept = entries.look_up(batch, "f")
        await batch.execute()
    assert fresh_images(kept.value, [0]) == {}
