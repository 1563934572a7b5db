"""Opens the configured store, and the store of image bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from gateway.calendar import Calendar
from gateway.configuration.settings import Settings
from gateway.store.blobs import open_blob_store
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.protocol import BlobStore, Store
from gateway.store.sqlite.store import open_sqlite_store

if TYPE_CHECKING:
    from gateway.store.redis.store import RedisStore

DATABASE: Final = "gateway.sqlite"
BLOBS_FOLDER: Final = "blobs"


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
    """The configured store, and the store of image bytes.

    An embedded store must exist. A Redis may be empty, and may be unavailable for now.
    """
    folder = settings.store.data_dir
    calendar = create_calendar(settings)
    store: Store
    blobs: BlobStore
    async with AsyncExitStack() as stack:
        if settings.store.redis_url is not None:
            url = settings.store.redis_url.get_secret_value()
            store = await stack.enter_async_context(_open_redis(url, calendar))
        else:
            store = await stack.enter_async_context(
                open_sqlite_store(folder / DATABASE, calendar=calendar)
            )
        if settings.store.blobs_url is not None:
            url = settings.store.blobs_url.get_secret_value()
            blobs = await stack.enter_async_context(open_blob_store(url))
        elif settings.store.redis_url is not None:
            blobs = await stack.enter_async_context(_open_redis_blobs(url))
        else:
            blobs = FolderBlobs(folder / BLOBS_FOLDER, data_dir=folder)
        yield store, blobs


@asynccontextmanager
async def open_existing_store(settings: Settings) -> AsyncIterator[Store]:
    """The store that a gateway has created, for commands.

    Unlike `open_store`, it never creates a store in an empty Redis. Raises `StoreMissing`,
    `SchemaMismatch` and `StoreUnavailable`.
    """
    if settings.store.redis_url is None:
        async with open_store(settings) as (store, _):
            yield store
        return
    url = settings.store.redis_url.get_secret_value()
    async with _open_redis(url, create_calendar(settings), may_create=False) as store:
        await store.check_schema()
        yield store


def _open_redis(
    url: str, calendar: Calendar, *, may_create: bool = True
) -> AbstractAsyncContextManager[RedisStore]:
    # Only here, because importing redis-py takes longer than most commands on an embedded store.
    from gateway.store.redis.store import open_redis_store  # noqa: PLC0415

    return open_redis_store(url, may_create=may_create, calendar=calendar)


def _open_redis_blobs(url: str) -> AbstractAsyncContextManager[BlobStore]:
    from gateway.store.blobs.redis import open_redis_blobs  # noqa: PLC0415 - as above

    return open_redis_blobs(url, shares_server=True)


def create_calendar(settings: Settings) -> Calendar:
    """The days and months of `billing.time_zone`."""
    return Calendar(ZoneInfo(settings.billing.time_zone))
