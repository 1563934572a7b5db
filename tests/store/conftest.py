"""The two stores as fixtures: every test that asks for `store` runs on both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import redis

from gateway.store.blobs_folder import FolderBlobs
from gateway.store.redis import open_redis_blobs, open_redis_store
from gateway.store.sqlite import create_sqlite_layout, open_sqlite_store
from gateway.store.verbs import BlobStore, Store
from tests.redis_server import pytest_runtest_makereport, run_redis_server  # noqa: F401 - a hook

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens the test's store once more, as another process would."""


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of this test process's own server."""
    with run_redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of a server that is empty now."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """An embedded store's database, created and closed."""
    path = tmp_path / "data" / "store.sqlite3"
    create_sqlite_layout(path)
    return path


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    """A fresh store of each kind, to be opened as often as the test likes."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda: open_sqlite_store(path)
    url: str = request.getfixturevalue("redis_url")
    return lambda: open_redis_store(url)


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


@pytest.fixture(params=["folder", "redis"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    """An empty keeper of picture bytes, of each kind."""
    if request.param == "folder":
        yield FolderBlobs(tmp_path / "blobs")
        return
    async with open_redis_blobs(request.getfixturevalue("redis_url")) as opened:
        yield opened
