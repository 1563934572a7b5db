"""Servers of object storage that long tests install: moto for S3 and Azurite for Azure.

They are heavy (317 MB and 186 MB), so continuous integration has only nanio (`bucket_servers`).
"""

from __future__ import annotations

import base64
import hmac
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.request import Request, urlopen

from tests import npm, python_packages
from tests.bucket_servers import wait_for_answer
from tests.ports import free_port

MOTO = "moto[server]==5.2.5"
AZURITE = "azurite@3.35.0"

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The default key of Azurite, which its documentation names."""


@contextmanager
def run_moto(folder: Path) -> Iterator[str]:
    """The URL of a bucket at moto. It accepts any secret."""
    port = free_port()
    program = python_packages.install_packages(MOTO) / "bin" / "moto_server"
    command = [str(program), "-p", str(port)]
    with _running(command, folder, f"http://127.0.0.1:{port}") as endpoint:
        urlopen(Request(f"{endpoint}/images", method="PUT"), timeout=10).close()
        yield f"s3://images/a/prefix?endpoint={endpoint}&region=us-east-1"


@contextmanager
def run_azurite(folder: Path) -> Iterator[str]:
    """The URL of a container at Azurite, for its own account."""
    port = free_port()
    script = npm.install_packages(AZURITE) / "node_modules/azurite/dist/src/blob/main.js"
    command = ["node", str(script), "--blobPort", str(port), "--location", str(folder)]
    command += ["--skipApiVersionCheck", "--silent"]
    with _running(command, folder, f"http://127.0.0.1:{port}") as endpoint:
        _create_container(f"{endpoint}/{AZURITE_ACCOUNT}/images?restype=container")
        yield f"az://images/a/prefix?account={AZURITE_ACCOUNT}&endpoint={endpoint}/{AZURITE_ACCOUNT}"


def _create_container(url: str) -> None:
    """A request that is signed as Azure's `Shared Key` wants it, which obstore does not make."""
    headers = {
        "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True),
        "x-ms-version": "2021-08-06",
    }
    listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    resource = f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/images\nrestype:container"
    text = "PUT" + "\n" * 12 + listed + resource
    signed = hmac.digest(base64.b64decode(AZURITE_KEY), text.encode(), "sha256")
    signature = base64.b64encode(signed).decode()
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{signature}"
    urlopen(Request(url, method="PUT", headers=headers), timeout=10).close()


@contextmanager
def _running(command: list[str], folder: Path, endpoint: str) -> Iterator[str]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for_answer(endpoint)
        yield endpoint
    finally:
        process.kill()
        process.wait()
