"""Purges: empty slots, page by page.

A purge of one entry is one step. One of a tag, a model or everything first writes its marker
(`purge_markers`), by which it holds at once, and then walks over the entries. Its progress is in
the store: if the worker that walks dies, another continues at the last page. Each page can be
repeated.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import orjson
import structlog

from gateway.cache.image_cache import ImageCache
from gateway.cache.purge_markers import PURGES, PurgeKind, PurgeMarker, PurgeMarkers
from gateway.cache.tags import SPACE as TAGS
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, StoreUnavailable
from gateway.images import decode_fields
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    DeleteValue,
    Entry,
    GetValue,
    ReadEntry,
    ScanEntries,
    ScanSet,
    SetValue,
)
from gateway.store.protocol import Store

TURNS: Final = "purge_turns"
"""The space of values that name, for each purge, the worker that walks over its entries."""

TURN_SECONDS: Final = 10.0
"""A worker's turn expires after this time. Each page renews it."""

TAGGED_PAGE: Final = 50
"""Entries that one step of a purge by tag reads and empties, in a few milliseconds of the loop."""

SCANNED_PAGE: Final = 200
"""The same of any other purge. In Redis, keys of every kind count."""

MAX_FIRST_PAGES: Final = 250
"""A request walks over so many pages itself. A purge of fewer is done when it is answered."""

MAX_FIRST_ENTRIES: Final = 1000

PROGRESS_SECONDS: Final = 7 * 86_400.0
"""How long the progress of a purge can be read after its last step."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Purge:
    """A purge and its progress."""

    id: str
    images: int = 0
    """Slots that it has emptied."""
    done: bool = False
    entries: int = 0
    """Entries that it has looked at."""
    after: str = ""
    """The cursor of the next page."""

    def public(self) -> dict[str, Any]:
        """The purge for the admin API."""
        return {"images": self.images, "done": self.done, "id": self.id}


class Purges:
    """Starts purges and walks over their entries."""

    def __init__(self, store: Store, image_cache: ImageCache, markers: PurgeMarkers) -> None:
        self._store = store
        self._image_cache = image_cache
        self._markers = markers
        self._walker = secrets.token_bytes(12)
        self._starting: set[str] = set()  # ids of purges that requests of this worker walk over

    async def start(self, kind: PurgeKind, value: str) -> Purge:
        """Starts a purge, which holds from now on, and walks over its first entries.

        If there are more, `run` in any worker continues. Raises `StoreUnavailable`, and 503 if too
        many purges are under way.
        """
        purge = Purge(_new_id())
        # The job of this worker has the same turn, so it would walk beside this request.
        self._starting.add(purge.id)
        try:
            await self._save(purge)
            marker = await self._markers.add(purge.id, kind, value)
            for _ in range(MAX_FIRST_PAGES):
                purge = await self.walk(marker) or purge
                if purge.done or purge.entries >= MAX_FIRST_ENTRIES:
                    break
            await self._end_turn(purge.id)
        finally:
            self._starting.discard(purge.id)
        return purge

    async def finished(self, images: int) -> Purge:
        """A purge that was a single step, so that its progress can be read like any other's."""
        purge = Purge(_new_id(), images=images, done=True)
        await self._save(purge)
        return purge

    async def find(self, purge_id: str) -> Purge:
        """A purge of the last days. Raises 404 for an unknown id."""
        purge = await self._load(purge_id)
        if purge is None:
            raise GatewayError(
                f"There is no purge '{purge_id[:64]}', or it ended more than "
                f"{PROGRESS_SECONDS / 86_400:.0f} days ago.",
                type=INVALID_REQUEST,
                param="id",
                code=ErrorCode.PURGE_NOT_FOUND,
            )
        return purge

    async def run(self, *, max_pages: int = sys.maxsize) -> int:
        """Finishes the purges under way that nothing else walks over; returns the number of pages.

        Raises `StoreUnavailable`.
        """
        pages = 0
        for marker in await self._markers.running():
            if marker.id in self._starting:
                continue
            while pages < max_pages and (purge := await self.walk(marker)) is not None:
                pages += 1
                if purge.done:
                    log.info("purge_done", purge=purge.id, images=purge.images)
                    break
        return pages

    async def walk(self, marker: PurgeMarker) -> Purge | None:
        """Empties a page of entries; returns the progress, None if another worker has the turn."""
        if not await self._take_turn(marker.id):
            return None
        purge = await self._load(marker.id) or Purge(marker.id)
        if not purge.done:
            try:
                purge = await self._step(marker, purge)
            except StoreUnavailable:
                # A cursor means nothing to another server that took over. From the start again:
                # what is empty stays so.
                await self._save(replace(purge, after=""))
                raise
            await self._save(purge, renews_turn=True)
        if purge.done:
            # Last: if this worker dies before, another one repeats this step.
            await self._markers.remove(marker.id)
            await self._end_turn(marker.id)
        return purge

    async def _step(self, marker: PurgeMarker, purge: Purge) -> Purge:
        entries, after = await self._read_page(marker, purge.after)
        is_tag = marker.kind == "tag"
        purged = {
            fingerprint: {
                n: slot.image_id for n, slot in entry.items() if marker.names(slot, has_tag=is_tag)
            }
            for fingerprint, entry in entries.items()
        }
        await self._image_cache.empty_all(purged)
        return replace(
            purge,
            images=purge.images + sum(map(len, purged.values())),
            entries=purge.entries + len(entries),
            after=after or "",
            done=after is None,
        )

    async def _read_page(
        self, marker: PurgeMarker, after: str
    ) -> tuple[Mapping[str, Any], str | None]:
        """The slots of some entries by fingerprint, and the cursor of the next page."""
        if marker.kind != "tag":
            page = await execute(self._store, ScanEntries(after, SCANNED_PAGE))
            return page.entries, page.after
        members = await execute(self._store, ScanSet(TAGS, marker.value, after, TAGGED_PAGE))
        batch = Batch(self._store)
        found = {name: batch.add(ReadEntry(name)) for name in members.members}
        await batch.execute()
        entries: Mapping[str, Entry] = {name: entry.value for name, entry in found.items()}
        return {name: entry.slots for name, entry in entries.items()}, members.after

    # ── progress and turns ──────────────────────────────────────────────────────────────────

    async def _load(self, purge_id: str) -> Purge | None:
        found = await execute(self._store, GetValue(PURGES, purge_id))
        return None if found is None else decode_fields(Purge, orjson.loads(found))

    async def _save(self, purge: Purge, *, renews_turn: bool = False) -> None:
        batch = Batch(self._store)
        encoded = orjson.dumps(asdict(purge))
        batch.add(SetValue(PURGES, purge.id, encoded, PROGRESS_SECONDS))
        if renews_turn:
            batch.add(SetValue(TURNS, purge.id, self._walker, TURN_SECONDS))
        await batch.execute()

    async def _take_turn(self, purge_id: str) -> bool:
        """Takes the turn; False while another worker has it."""
        batch = Batch(self._store)
        batch.add(SetValue(TURNS, purge_id, self._walker, TURN_SECONDS, only_if_absent=True))
        walker = batch.add(GetValue(TURNS, purge_id))
        await batch.execute()
        return walker.value == self._walker

    async def _end_turn(self, purge_id: str) -> None:
        await execute(self._store, DeleteValue(TURNS, purge_id, self._walker))


def _new_id() -> str:
    return f"purge_{secrets.token_hex(12)}"
