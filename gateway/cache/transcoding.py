"""Derivation: a picture in another format, made from a cached PNG instead of being bought.

What is made lies in an entry of its own like any other picture, costs nothing, keeps age and
worth of its source, and goes with it when that is taken down. Whether it is made at all is a
setting; what can be made faithfully is for `gateway.pictures` to say.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from gateway.cache.blobs import Blobs, hash_bytes
from gateway.cache.entries import (
    Entries,
    Held,
    fresh_pictures,
    look_for_refusal,
    read_refusal,
)
from gateway.cache.image_index import Gallery
from gateway.cache.takedowns import Takedowns, is_taken_down
from gateway.imagefile.convert import DerivedFormat, derive_picture
from gateway.images import Picture
from gateway.store.batch import Batch
from gateway.store.protocol import Store

AT_ONCE: Final = 2
"""Pictures that are unpacked at the same time: each takes four bytes a pixel."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made, and of which entry's pictures."""

    fingerprint: str
    source: str
    """The fingerprint of the same question in PNG."""
    format: DerivedFormat
    compression: int
    """0…100, as `output_compression`."""


class Derivation:
    """Makes pictures from pictures."""

    def __init__(
        self,
        store: Store,
        *,
        entries: Entries,
        gallery: Gallery,
        blobs: Blobs,
        takedowns: Takedowns,
    ) -> None:
        self._store = store
        self._entries = entries
        self._gallery = gallery
        self._blobs = blobs
        self._takedowns = takedowns
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._making: dict[str, asyncio.Task[Picture | None]] = {}

    async def fill(self, wanted: Wanted, slots: Iterable[int]) -> Mapping[int, Held]:
        """Those of `slots` that could be made from the source's pictures; they are kept.

        None for a question that was taken down, though its source was not.
        """
        batch = Batch(self._store)
        entry = self._entries.look_up(batch, wanted.source)
        refusal = look_for_refusal(batch, wanted.fingerprint)
        await batch.send()
        if is_taken_down(read_refusal(refusal.answer)):
            return {}
        made: dict[int, Held] = {}
        for slot, source in fresh_pictures(entry.answer, slots).items():
            picture = await self._make_once(wanted, slot, source.picture)
            if picture is not None:
                made[slot] = replace(source, picture=picture)
        for slot, held in made.items():
            await self._keep(wanted, slot, held)
        if made:
            await self._follow_takedowns([held.picture for held in made.values()])
        return made

    async def _follow_takedowns(self, made: Iterable[Picture]) -> None:
        """A source may have been taken down before its list named what was made of it.

        Whoever takes down writes that first and reads the list then; here it is the other way
        round, so one of the two sees the other.
        """
        await self._takedowns.look()
        orphaned = [p.digest for p in made if self._blobs.is_taken_down(p.derived_from or "")]
        if orphaned:
            batch = Batch(self._store)
            self._takedowns.add(batch, orphaned)
            await batch.send()

    async def _make_once(self, wanted: Wanted, slot: int, source: Picture) -> Picture | None:
        """Those who want the same picture at the same time share the making of it."""
        picture_id = _id_of(wanted, slot, source)
        task = self._making.get(picture_id)
        if task is None:
            making = self._make(wanted, slot, source)
            task = asyncio.create_task(making, name=f"derive picture {picture_id}")
            self._making[picture_id] = task
            task.add_done_callback(lambda _: self._making.pop(picture_id, None))
        return await asyncio.shield(task)

    async def _make(self, wanted: Wanted, slot: int, source: Picture) -> Picture | None:
        data = await self._blobs.view(source.digest, "data")
        if data is None or source.format != "png":
            return None
        make = partial(derive_picture, data, format=wanted.format, compression=wanted.compression)
        async with self._turn:
            derived = await asyncio.to_thread(make)
        if derived is None:
            return None
        digest = await hash_bytes(derived)
        if self._blobs.is_taken_down(digest):  # it is made of the same bytes each time
            return None
        await self._blobs.put(digest, derived)
        return replace(
            source,
            id=_id_of(wanted, slot, source),
            digest=digest,
            format=wanted.format,
            size_bytes=len(derived),
            shown=_shown_as(wanted, source),
            derived_from=source.digest,
        )

    async def _keep(self, wanted: Wanted, slot: int, held: Held) -> None:
        batch = Batch(self._store)
        self._entries.keep(
            batch,
            wanted.fingerprint,
            f"derived-{held.picture.id}",
            pictures={slot: held.picture},
            lifetime_seconds=held.ttl_seconds,
        )
        self._gallery.hang(batch, wanted.fingerprint, {slot: held.picture})
        shelved = self._blobs.shelve(batch, [held.picture])
        await batch.send()
        await self._blobs.evict(shelved)


def _shown_as(wanted: Wanted, source: Picture) -> Mapping[str, str]:
    if "output_format" not in source.shown:
        return source.shown
    return {**source.shown, "output_format": wanted.format}


def _id_of(wanted: Wanted, slot: int, source: Picture) -> str:
    """The same each time, so that two who make it at once keep one."""
    return hashlib.sha256(f"{wanted.fingerprint} {slot} {source.id}".encode()).hexdigest()[:24]
