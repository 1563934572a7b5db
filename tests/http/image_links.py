"""Signed links for tests: a gateway with a known signing key, and requests of its links."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from gateway.access.signing import SigningKeys
from gateway.cache.image_index import image_path
from gateway.images import Image
from gateway.store.batch import Batch
from tests.gateways import InProcess, Reply, Upstream, make_settings, run_gateway

KID, SECRET = "test", "a-signing-key-of-the-tests"
SIGNER = SigningKeys([(KID, SECRET.encode())])
HOUR_SECONDS = 3600


@dataclass(frozen=True)
class Album:
    """A gateway with a known signing key, and one image with its link."""

    gateway: InProcess
    path: str
    """The image's link as a client received it, without scheme and host."""
    data: bytes
    """Its bytes, as a client received them in base64."""

    @property
    def unsigned_path(self) -> str:
        """The image's path before it was signed."""
        return f"/images/{self.name}"

    @property
    def name(self) -> str:
        """The file name at the end of the link."""
        return self.path.rpartition("/")[2]

    @property
    def signature(self) -> str:
        """The part of the link without which it is not valid."""
        return self.path.split("/")[2].split(".")[2]

    @property
    def expires_at(self) -> int:
        return int(self.path.split("/")[2].split(".")[1])

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()}"'

    def sign(self, path: str | None = None, *, ttl_seconds: float = HOUR_SECONDS) -> str:
        """A link to any path; without one, another link to the image."""
        path = path or self.unsigned_path
        return SIGNER.sign(path, expires_at=int(time.time() + ttl_seconds))

    async def show(self, path: str | None = None, method: str = "GET", **headers: str) -> Reply:
        """Requests a link, unchanged. `_` in the name of a header becomes `-`."""
        client = self.gateway.client
        async with client.session.request(
            method,
            URL(client.url + (path or self.path), encoded=True),
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            allow_redirects=False,
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def add(self, data: bytes, *, image_id: str, format: str = "png") -> str:
        """Stores any bytes as an image; returns a link to it."""
        digest = hashlib.sha256(data).hexdigest()
        cache, store = self.gateway.gateway.cache, self.gateway.gateway.store
        image = Image(image_id, digest, format, 1, 1, len(data), time.time())
        await cache.blobs.put(digest, data)
        batch = Batch(store)
        cache.image_index.add(batch, "f", {0: image})
        await batch.execute()
        return self.sign(image_path(image))

    async def evict(self, data: bytes) -> None:
        """Removes bytes as an eviction does, also from memory."""
        digest, blobs = hashlib.sha256(data).hexdigest(), self.gateway.gateway.cache.blobs
        await blobs.delete([digest])
        blobs.forget([digest])

    async def raw(self, *requests: str) -> bytes:
        """Sends requests on one connection, which the last one closes; returns the responses."""
        url = URL(self.gateway.client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write("".join(requests).encode())
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return received


def request(method: str, target: str, *lines: str, last: bool = False) -> str:
    """The bytes of a request, as text."""
    head = (f"{method} {target} HTTP/1.1", "Host: images", *lines)
    return "\r\n".join((*head, *(("Connection: close",) if last else ()), "", ""))


@asynccontextmanager
async def open_album(folder: Path, upstream: Upstream, **given: object) -> AsyncIterator[Album]:
    """Opens a gateway on the embedded store, with further settings, and buys an image."""
    server = {"signing_keys": f"{KID}:{SECRET}"}
    settings = make_settings(folder, upstream.base_url, server=server, **given)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key()
        by_link = await alice.ask(model="dall-e-3", response_format="url")
        in_base64 = await alice.ask(model="dall-e-3", response_format="b64_json")
        link = by_link.json["data"][0]["url"].removeprefix(gateway.client.url)
        yield Album(gateway, link, base64.b64decode(in_base64.images[0]))
