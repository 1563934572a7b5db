"""The image, really built from the Dockerfile and run, without Docker."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.dockerfile import read_stages
from tests.gateways import Client, run_upstream
from tests.oci_containers import (
    BASE,
    IMAGE,
    ImageStore,
    open_image_store,
    run_container,
    skip_without_tools,
    until_healthy,
)
from tests.other_users import RANDOM
from tests.ports import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parent.parent
_, FINAL = read_stages(ROOT / "Dockerfile")
LARGEST_ADDED_BYTES = 150 * 10**6
"""Of the gateway and its packages, above those of the base."""

STATUS = "print(open('/proc/1/status').read())"
TRY_TO_WRITE = """
import errno, pathlib, sys
for folder in ("/", "/opt/gateway", "/etc/image-gateway"):
    try:
        pathlib.Path(folder, "written").write_bytes(b"")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def images() -> Iterator[ImageStore]:
    """The base and the image. Layers of overlayfs need a short path on a disk."""
    skip_without_tools()
    folder = Path(tempfile.mkdtemp(prefix="gateway-image-", dir="/var/tmp"))
    try:
        with open_image_store(folder) as store:
            store.make_base()
            store.build(ROOT)
            yield store
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def root(images: ImageStore) -> Iterator[Path]:
    """The root folder of a container of the image."""
    with images.mounted(IMAGE) as folder:
        yield folder


@pytest.mark.long
@pytest.mark.timeout(900)  # it downloads a Debian and all packages
def test_the_image_adds_at_most_150_mb_to_its_base(
    images: ImageStore, capsys: pytest.CaptureFixture[str]
):
    base, whole = images.size(BASE), images.size(IMAGE)
    with capsys.disabled():
        above = f"{(whole - base) / 1e6:.0f} MB above its base"
        print(f"\nimage: {whole / 1e6:.0f} MB, {above}")  # noqa: T201
    assert 0 < whole - base <= LARGEST_ADDED_BYTES


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_built_image_has_the_configuration_of_the_dockerfile(images: ImageStore):
    """A build may drop an instruction that its format does not know, as a health check."""
    config = images.config(IMAGE)
    assert config["Healthcheck"]["Test"] == ["CMD", *FINAL.healthcheck()]
    assert config["User"] == FINAL.one("USER")
    assert config["StopSignal"] == FINAL.one("STOPSIGNAL")
    assert list(config["Volumes"]) == [FINAL.one("VOLUME")]
    assert config["Entrypoint"] + config["Cmd"] == ["gateway", "serve"]
    assert dict(line.split("=", 1) for line in config["Env"]) == FINAL.environment()


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_container_without_rights_buys_an_image_and_drains(
    images: ImageStore, root: Path, tmp_path: Path
):
    """As any user, with a root file system that nothing can write. SIGTERM finishes a purchase."""
    config = images.config(IMAGE)
    data, port = make_volume(root, tmp_path), free_port()
    async with run_upstream() as upstream, aiohttp.ClientSession() as session:
        environment = {
            "GATEWAY_LISTEN": f"0.0.0.0:{port}",  # of this machine, where 8080 may be taken
            "UPSTREAM_BASE_URL": upstream.base_url,
            "UPSTREAM_API_KEY": "sk-x",
        }
        with run_container(
            tmp_path, root, config, user=RANDOM, volumes={"/data": data}, environment=environment
        ) as container:
            await asyncio.to_thread(until_healthy, container, FINAL.healthcheck())
            status = dict(
                line.split(":\t", 1)
                for line in container.output("python", "-c", STATUS).splitlines()
                if ":\t" in line
            )
            assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
                "0" * 16
            }
            assert status["NoNewPrivs"] == "1"
            assert set(status["Uid"].split()) == {str(RANDOM.uid)}
            assert container.output("python", "-c", TRY_TO_WRITE).split() == ["EROFS"] * 3
            secret = container.output("gateway", "keys", "add", "alice")
            client = Client(f"http://127.0.0.1:{port}", session, secret)
            first, again = await client.ask("an otter"), await client.ask("an otter")
            assert first.status == again.status == 200
            assert first.images == again.images
            assert "fwd=miss; stored" in first.cache_status
            assert again.cache_status.startswith("hit")
            await upstream.forget()
            async with upstream.hold():
                purchase = asyncio.create_task(client.ask("a heron"))
                await upstream.until_sent()
                container.kill(config["StopSignal"])
                await eventually(lambda: is_draining(client))
                assert not purchase.done()
            assert (await purchase).status == 200
            assert await asyncio.to_thread(container.status) == 0, container.log
        # The volume has what was bought during the drain.
        with run_container(
            tmp_path, root, config, user=RANDOM, volumes={"/data": data}, environment=environment
        ) as container:
            await asyncio.to_thread(until_healthy, container, FINAL.healthcheck())
            assert (await client.ask("a heron")).cache_status.startswith("hit")
            assert len(await upstream.bodies()) == 1


def make_volume(root: Path, folder: Path) -> Path:
    """A new volume for /data: owner, group and rights are those of the image's folder."""
    volume, there = folder / "volume", (root / "data").stat()
    volume.mkdir()
    volume.chmod(there.st_mode)
    os.chown(volume, there.st_uid, there.st_gid)
    return volume


async def is_draining(client: Client) -> bool:
    return (await client.send("GET", "/readyz")).status == 503
