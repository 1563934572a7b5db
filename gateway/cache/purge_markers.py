"""Purge markers: they make a purge hold at once, while its slots are still being emptied.

A purge of many entries takes a while. It first writes a marker, then empties slots page by page
(`purges`). Every look-up reads the markers in the round trip that reads the entry. An image that
was stored before a marker that names it counts as purged, and the look-up empties its slot. An
image that a purchase under way stores afterwards stays. Usually there is no marker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

import orjson

from gateway.cache.entries import decode_image
from gateway.cache.tags import SPACE as TAGS
from gateway.errors import ErrorCode, GatewayError
from gateway.images import decode_fields
from gateway.store.batch import Batch, Result, execute, execute_kept
from gateway.store.commands import CompareAndSet, Entry, Get, HasMember, ReadEntry, Slot, Write
from gateway.store.protocol import Store

PURGES: Final = "purges"
"""The space of one record, `RUNNING`: the markers."""

RUNNING: Final = "running"

MARKERS: Final = Get(PURGES, RUNNING)
"""Reads the record."""

MAX_RUNNING: Final = 8
"""Every look-up reads all markers, so there are few."""

RETRY_SECONDS: Final = 10
"""When an administrator with `MAX_RUNNING` purges should try again."""

WRITE_ATTEMPTS: Final = 20

PurgeKind: TypeAlias = Literal["tag", "model", "all"]


@dataclass(frozen=True, slots=True)
class PurgeMarker:
    """Images that are stored at `at` or before, and have this tag or model."""

    id: str
    kind: PurgeKind
    value: str
    """The tag or the model; empty for all."""
    at: float
    """Unix seconds on the store's clock."""

    def names(self, slot: Slot, *, has_tag: bool) -> bool:
        """Whether the image of a slot is purged; `has_tag` is whether its entry has the tag."""
        if slot.stored_at > self.at:
            return False
        match self.kind:
            case "all":
                return True
            case "model":
                return decode_image(slot.data).model == self.value
            case "tag":
                return has_tag


class PurgeMarkers:
    """Reads and writes the markers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def look_up(self, batch: Batch) -> Result[bytes | None]:
        """Reads the markers, for `purged_slots`."""
        return batch.add(MARKERS)

    async def running(self) -> Sequence[PurgeMarker]:
        """All markers. Raises `StoreUnavailable`."""
        found = await execute_kept(self._store, MARKERS)
        return decode_markers(found)

    async def add(self, purge_id: str, kind: PurgeKind, value: str) -> PurgeMarker:
        """Adds a marker, which holds on every worker from now on.

        Raises `GatewayError` 503 beyond `MAX_RUNNING`, and `StoreUnavailable`.
        """
        # Any entry has the store's time. An image that is stored after this read may stay.
        now = (await execute(self._store, ReadEntry(""))).now
        marker = PurgeMarker(purge_id, kind, value, now)
        await self._change(lambda markers: (*markers, marker))
        return marker

    async def remove(self, purge_id: str) -> None:
        """Removes a marker whose slots are empty. Raises `StoreUnavailable`."""
        await self._change(lambda markers: tuple(m for m in markers if m.id != purge_id))

    async def _change(
        self, change: Callable[[Sequence[PurgeMarker]], Sequence[PurgeMarker]]
    ) -> None:
        for _ in range(WRITE_ATTEMPTS):
            before = await execute(self._store, MARKERS)
            markers = change(decode_markers(before))
            if len(markers) > MAX_RUNNING:
                raise _too_many()
            after = orjson.dumps(markers) if markers else None
            if after == before:
                return
            write = Write(PURGES, RUNNING, after, expected=before)
            if await execute(self._store, CompareAndSet((write,))) is None:
                return
        raise _too_many()

    async def purged_slots(
        self, fingerprint: str, entry: Entry, found: bytes
    ) -> Mapping[int, Slot]:
        """The slots of an entry that the markers name. Raises `StoreUnavailable`."""
        markers = [m for m in decode_markers(found) if _is_older(entry, m)]
        batch = Batch(self._store)
        tagged = {
            m.id: batch.add(HasMember(TAGS, m.value, fingerprint))
            for m in markers
            if m.kind == "tag"
        }
        await batch.execute()  # nothing is sent unless a tag is being purged
        return {
            n: slot
            for n, slot in entry.slots.items()
            if any(m.names(slot, has_tag=m.id in tagged and tagged[m.id].value) for m in markers)
        }


@lru_cache(maxsize=16)
def decode_markers(found: bytes | None) -> Sequence[PurgeMarker]:
    """The markers of a record; none if there is no record."""
    return tuple(decode_fields(PurgeMarker, m) for m in orjson.loads(found)) if found else ()


def _is_older(entry: Entry, marker: PurgeMarker) -> bool:
    return any(slot.stored_at <= marker.at for slot in entry.slots.values())


def _too_many() -> GatewayError:
    return GatewayError(
        f"{MAX_RUNNING} purges are under way, the most there can be. Try again when one is done.",
        code=ErrorCode.OVERLOADED,
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
