"""The two stores as fixtures: every test with `store` runs on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store.blobs import open_blob_store
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.blobs.redis import open_redis_blobs
from gateway.store.protocol import BlobStore, Store
from tests.conftest import OpenStore
from tests.redis_server import restricted


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    """An open, empty store."""
    async with open_store() as opened:
        yield opened


@pytest.fixture
async def other(open_store: OpenStore) -> AsyncIterator[Store]:
    """The same store, opened a second time."""
    async with open_store() as opened:
        yield opened


@pytest.fixture(params=["folder", "redis", "bucket"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    """An empty blob store of each kind."""
    if request.param == "folder":
        yield FolderBlobs(tmp_path / "blobs")
        return
    if request.param == "bucket":
        async with open_blob_store(request.getfixturevalue("bucket_url")) as opened:
            yield opened
        return
    async with open_redis_blobs(restricted(request.getfixturevalue("redis_url"))) as opened:
        yield opened
