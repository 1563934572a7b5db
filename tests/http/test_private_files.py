"""Nothing that the gateway stores can be read by other users of its machine."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.configuration.files import ConfigFiles, Configuration
from gateway.process.bootstrap import prepare
from gateway.process.checks import examine
from gateway.process.findings import Finding
from gateway.store.blobs.folder import FolderBlobs
from gateway.store.sqlite.connection import create_sqlite_schema
from tests.gateways import CONFIG, Client, Upstream, make_settings, run_gateway, run_processes
from tests.http.test_smoke import run_demo
from tests.waiting import GENEROUS_SECONDS

DIGEST = "ab" * 32


@contextmanager
def umask(mask: int) -> Iterator[None]:
    former = os.umask(mask)
    try:
        yield
    finally:
        os.umask(former)


def modes(*roots: Path) -> dict[str, str]:
    """The modes of everything below the roots, and of the roots, that are not private."""
    found = {}
    for path in (p for root in roots for p in (root, *root.rglob("*"))):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found[str(path)] = f"{mode:o}"
    return found


def names(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*")}


def open_to_everyone(*roots: Path) -> None:
    """As a restored backup may be."""
    for root in roots:
        for path in (root, *root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)


async def use(client: Client) -> None:
    """Has the gateway store an image, partial images, a link, tags and a key."""
    alice = await client.with_key()
    await alice.ask("a pond", headers={"X-Gateway-Tags": "ponds"})
    await alice.ask("a lake", stream=True, partial_images=2)
    await alice.ask("a link", model="dall-e-3")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177], ids="{:03o}".format)
@pytest.mark.parametrize("has_folder", [False, True], ids=["data", "blobs-url"])
async def test_every_file_and_folder_is_private_whatever_the_umask(
    tmp_path: Path, upstream: Upstream, mask: int, has_folder: bool
) -> None:
    """Also missing parents of the folders, through which others could replace them."""
    data, blobs = tmp_path / "new" / "data", tmp_path / "far" / "away" / "blobs"
    store: dict[str, Any] = {"blobs_url": f"file://{blobs}"} if has_folder else {}
    settings = make_settings(data, upstream.base_url, store=store)
    with umask(mask):
        async with run_gateway(settings) as here:
            await use(here.client)
            found = modes(data.parent, *([blobs.parents[1]] if has_folder else []))
            stored = names(tmp_path)
    assert found == {}
    assert stored >= {"gateway.sqlite", "gateway.sqlite-wal", "gateway.sqlite-lock", "lock"}


@pytest.mark.parametrize(
    "mask", [0o000, pytest.param(0o022, marks=pytest.mark.long)], ids="{:03o}".format
)
async def test_the_processes_create_private_files_only(
    tmp_path: Path, upstream: Upstream, mask: int
) -> None:
    """Of the command line, also those that libraries create, such as the metrics' files."""
    metrics = tmp_path / "metrics"
    metrics.mkdir(0o700)
    environ = {"GATEWAY_ADMIN_TOKEN": "", "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    config = {"server": {"admin_token": "${GATEWAY_ADMIN_TOKEN:-an-admin-token-of-tests}"}}
    with umask(mask):
        async with run_processes(
            tmp_path, upstream.base_url, workers=2, options=config, environ=environ
        ) as (_, client):
            await use(client)
            found = modes(tmp_path / "data", metrics)
            assert any(metrics.iterdir())
    assert found == {}


def test_the_demo_and_its_parent_folder_are_private(tmp_path: Path) -> None:
    with umask(0), run_demo(tmp_path, as_fork=True) as commands:
        # A purchase, so that there are images too.
        command = ["bash", "-c", commands[0]]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=GENEROUS_SECONDS)
        found = modes(tmp_path / "data")
        assert (tmp_path / "data" / "demo" / "admin-token").is_file()
    assert found == {}


async def test_a_start_makes_an_open_installation_private(
    tmp_path: Path, upstream: Upstream
) -> None:
    data, blobs = tmp_path / "data", tmp_path / "blobs"
    settings = make_settings(data, upstream.base_url, store={"blobs_url": f"file://{blobs}"})
    async with run_gateway(settings) as here:
        await use(here.client)
    (data / "demo").mkdir()
    (data / "demo" / "gateway.sqlite").touch()
    open_to_everyone(data, blobs)
    assert len(modes(data, blobs)) > 8
    prepare(settings)
    assert modes(data, blobs) == {}


async def test_the_doctor_tells_what_other_users_can_read(
    tmp_path: Path, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url)
    async with run_gateway(settings) as here:
        await use(here.client)
        private = await finding_of(here.settings)
        (tmp_path / "data" / "gateway.sqlite").chmod(0o640)
        (tmp_path / "data" / "blobs").chmod(0o755)
        shared = await finding_of(here.settings)
    assert private.level == "ok"
    assert shared.level == "warning"
    assert "2 of the gateway's files" in shared.message
    assert str(tmp_path / "data") in shared.message


async def finding_of(settings: Any) -> Finding:
    files = ConfigFiles(CONFIG / "gateway.yaml", CONFIG / "models.yaml")
    configuration = Configuration(files, {}, adjust=lambda _: settings)
    (finding,) = [f for f in await examine(configuration) if f.name == "private files"]
    return finding


def test_a_blobs_folder_with_other_files_keeps_its_mode_and_theirs(tmp_path: Path) -> None:
    """An operator may name a folder that has other uses, such as /srv or /tmp."""
    root = tmp_path / "srv"
    for name in ("ab", "ephemeral/cd", "website", "zz"):
        (root / name).mkdir(parents=True)
        (root / name / DIGEST).touch()
    (root / "lock").touch()
    open_to_everyone(root)
    prepare(make_settings(tmp_path / "data", "http://x/v1", store={"blobs_url": f"file://{root}"}))
    still_open = {str(Path(path).relative_to(root)) for path in modes(root)}
    assert still_open == {".", "website", f"website/{DIGEST}", "zz", f"zz/{DIGEST}"}


def test_a_link_in_the_data_folder_is_not_followed(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    open_to_everyone(elsewhere)
    data.mkdir()
    (data / "folder").symlink_to(elsewhere)
    (data / "file").symlink_to(elsewhere / "file")
    prepare(make_settings(data, "http://x/v1"))
    assert len(modes(elsewhere)) == 2


@pytest.mark.parametrize("mask", [0o000, 0o277], ids="{:03o}".format)
async def test_the_stores_alone_create_private_files(tmp_path: Path, mask: int) -> None:
    """Without the command line, which sets the umask."""
    with umask(mask):
        create_sqlite_schema(tmp_path / "deep" / "er" / "store.sqlite")
        await FolderBlobs(tmp_path / "blobs" / "root").put(DIGEST, b"bytes", 60)
        await FolderBlobs(tmp_path / "blobs" / "root").ephemeral().put(DIGEST, b"bytes", 60)
    found = modes(tmp_path / "deep", tmp_path / "blobs")
    # The second umask takes the owner's right to write, which files do not get back.
    assert set(found.values()) <= ({"400"} if mask else set())
