"""The cache, with its settings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.access.signing import EXPIRY_STEPS
from gateway.cache.blobs import Blobs, BlobsSettings, Observer
from gateway.cache.entries import Entries, EntriesSettings
from gateway.cache.image_cache import ImageCache
from gateway.cache.image_hits import ImageHits
from gateway.cache.image_index import ImageIndex
from gateway.cache.image_search import ImageSearch
from gateway.cache.invalidation import Invalidation
from gateway.cache.purge_markers import PurgeMarkers
from gateway.cache.purges import Purges
from gateway.cache.retired_entries import RetiredEntries
from gateway.cache.tags import Tags
from gateway.cache.takedowns import Takedowns
from gateway.cache.thumbnails import Thumbnails
from gateway.cache.transcoding import Transcoding
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.store.protocol import BlobStore, Store
from gateway.wiring.stores import open_existing_store, open_store


@dataclass(frozen=True, slots=True)
class Cache:
    """The components of `cache/` that workers and commands share."""

    image_cache: ImageCache
    image_index: ImageIndex
    image_hits: ImageHits
    image_search: ImageSearch
    thumbnails: Thumbnails
    blobs: Blobs
    takedowns: Takedowns
    purges: Purges
    invalidation: Invalidation
    transcoding: Transcoding
    retired_entries: RetiredEntries


@asynccontextmanager
async def open_cache(
    settings: Settings, *, ttl_seconds: float | None = None
) -> AsyncIterator[tuple[Store, Cache]]:
    """The store and the cache of a running gateway, for commands.

    Bytes that the command stores live for `ttl_seconds`, by default as long as the gateway's.
    Raises `StoreMissing`, `SchemaMismatch` and `StoreUnavailable`.
    """
    # The first one only checks that the store exists.
    async with open_existing_store(settings), open_store(settings) as (store, blob_store):
        cache = wire_cache(
            settings, store, blob_store, observer=Metrics().cache, ttl_seconds=ttl_seconds
        )
        yield store, cache


def wire_cache(
    settings: Settings,
    store: Store,
    blob_store: BlobStore,
    *,
    observer: Observer,
    ttl_seconds: float | None = None,
) -> Cache:
    """Constructs the components of `Cache`. No I/O."""
    entries, takedowns = Entries(entries_settings(settings)), Takedowns(store)
    bytes_settings = blobs_settings(settings)
    if ttl_seconds is not None:
        bytes_settings = bytes_settings.model_copy(update={"ttl_seconds": ttl_seconds})
    blobs = Blobs(
        bytes_settings,
        blob_store,
        store,
        takedowns=takedowns,
        observer=observer,
    )
    image_index = ImageIndex(
        store,
        blobs,
        ttl_seconds=bytes_settings.ttl_seconds,
        link_seconds=longest_link_seconds(settings),
    )
    tags = Tags(store, ttl_seconds=entries_settings(settings).longest_seconds)
    purge_markers = PurgeMarkers(store)
    image_cache = ImageCache(
        store,
        entries=entries,
        image_index=image_index,
        blobs=blobs,
        tags=tags,
        purge_markers=purge_markers,
    )
    purges = Purges(store, image_cache, purge_markers)
    invalidation = Invalidation(
        store, image_cache, image_index=image_index, takedowns=takedowns, purges=purges
    )
    blobs.on_evicted = image_cache.remove_evicted
    transcoding = Transcoding(
        store, image_cache, image_index=image_index, blobs=blobs, takedowns=takedowns
    )
    return Cache(
        image_cache,
        image_index,
        ImageHits(store, ttl_seconds=bytes_settings.ttl_seconds),
        ImageSearch(
            store,
            image_cache,
            image_index=image_index,
            blobs=blobs,
            ttl_seconds=entries_settings(settings).shortest_seconds,
        ),
        Thumbnails(blobs, max_pixels=settings.cache.max_pixels),
        blobs,
        takedowns,
        purges,
        invalidation,
        transcoding,
        RetiredEntries(store, entries, image_index, blobs, tags, time.time),
    )


def entries_settings(settings: Settings) -> EntriesSettings:
    """The settings of `cache.entries`."""
    return EntriesSettings(
        ttl_seconds=settings.cache.ttl_seconds,
        stale_if_error_seconds=settings.cache.stale_if_error_seconds,
        refusal_seconds=settings.cache.refusal_ttl_seconds,
    )


def blobs_settings(settings: Settings) -> BlobsSettings:
    """The settings of `cache.blobs`."""
    # Bytes outlive every entry and link that names them.
    longest_entry_seconds = entries_settings(settings).longest_seconds
    return BlobsSettings(
        ttl_seconds=longest_entry_seconds + longest_link_seconds(settings),
        total_bytes=settings.cache.total_bytes,
        memory_bytes=settings.cache.memory_bytes,
    )


def longest_link_seconds(settings: Settings) -> float:
    """How long a link can live: its expiry is rounded up."""
    return settings.cache.url_ttl_seconds * (1 + 1 / EXPIRY_STEPS)
