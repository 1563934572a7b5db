"""The stores as fixtures: every test with `store` runs on each of them."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.store.blobs import open_blob_store
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.blobs.redis import open_redis_blobs
from gateway.store.protocol import BlobStore, Store
from gateway.store.redis import outage
from tests.conftest import OpenStore
from tests.declared_keys import monitored
from tests.providers import AZURITE_KEY, run_azurite, run_moto
from tests.redis_server import restricted
from tests.stores import TOPOLOGIES


@pytest.fixture(scope="package", autouse=True)
def only_declared_keys(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """With `MONITORED=1`: in all these tests, no script touches a key that it has not declared."""
    if "MONITORED" not in os.environ:  # it slows the server down
        yield
        return
    url, file = request.getfixturevalue("redis_server"), tmp_path_factory.mktemp("monitor") / "log"
    with monitored(url, file) as executed:
        yield
    # The clock of `tests.clocked_store`, which its scripts read instead of the server's.
    undeclared = {use for use in executed.undeclared if not use.key.endswith(":test-clock")}
    assert not undeclared


@pytest.fixture
def quick_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is unavailable is tried often, and is available again soon after it works."""
    monkeypatch.setattr(outage, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(outage, "QUIET_SECONDS", 0.2)


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


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a bucket at moto."""
    with run_moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a container at Azurite."""
    with run_azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture(
    params=[
        "folder",
        "redis",
        "bucket",
        *TOPOLOGIES,
        # Their first test installs them.
        pytest.param("moto", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param("azurite", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ]
)
async def blobs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BlobStore]:
    """An empty blob store of each kind."""
    if request.param == "folder":
        yield FolderBlobs(tmp_path / "blobs")
        return
    if request.param in ("sentinel", "cluster"):
        async with open_blob_store(request.getfixturevalue(f"{request.param}_url")) as opened:
            yield opened
        return
    if request.param != "redis":
        url = request.getfixturevalue("bucket_url")
        if request.param != "bucket":
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY)
            url = request.getfixturevalue(request.param)
            url = url.replace("a/prefix", f"a/{secrets.token_hex(4)}")
        async with open_blob_store(url) as opened:
            yield opened
        return
    async with open_redis_blobs(restricted(request.getfixturevalue("redis_url"))) as opened:
        yield opened
