"""Stores of image bytes, opened by URL. A further place for bytes is a further row of `OPENERS`.

Without a URL of their own, `assembly` puts the bytes beside the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from gateway.store.blobs.bucket_url import BUCKET_SCHEMES
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.protocol import BlobStore
from gateway.store.redis.urls import REDIS_SCHEMES


def folder_of(url: str) -> Path:
    """The folder of a `file://` URL."""
    return Path(unquote(url.removeprefix("file://")))


@asynccontextmanager
async def _open_folder(url: str) -> AsyncIterator[BlobStore]:
    yield FolderBlobs(folder_of(url))


def _open_redis(url: str) -> AbstractAsyncContextManager[BlobStore]:
    # Imported only here: redis-py takes longer than most commands that need none.
    from gateway.store.blobs.redis import open_redis_blobs  # noqa: PLC0415

    return open_redis_blobs(url)


def _open_bucket(url: str) -> AbstractAsyncContextManager[BlobStore]:
    # Imported only here, by the process that uses a bucket: see `bucket_client`.
    from gateway.store.blobs.bucket import open_bucket_blobs  # noqa: PLC0415

    return open_bucket_blobs(url)


OPENERS: Final[Mapping[str, Callable[[str], AbstractAsyncContextManager[BlobStore]]]] = {
    **dict.fromkeys(REDIS_SCHEMES, _open_redis),
    "file": _open_folder,
    **dict.fromkeys(BUCKET_SCHEMES, _open_bucket),
}
"""URL scheme → opener. An opener takes the URL and connects lazily."""


def open_blob_store(url: str) -> AbstractAsyncContextManager[BlobStore]:
    """The blob store at a URL. Raises `ValueError` for a scheme without an opener."""
    opener = OPENERS.get(url.partition("://")[0])
    if opener is None:
        schemes = ", ".join(f"{scheme}://" for scheme in OPENERS)
        raise ValueError(f"The URL of a blob store begins with one of {schemes}.")
    return opener(url)
