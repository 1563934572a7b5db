"""Blobs in Redis."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import RedisError

from gateway.store.blobs.digests import check_digest
from gateway.store.commands import PutBlob
from gateway.store.redis.clients import Client, create_client
from gateway.store.redis.commands import read_cursor
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys, match_pattern
from gateway.store.redis.rights import BLOB_COMMANDS

DEFAULT_CAPACITY_BYTES: Final = 1 << 30
"""The bound on all blobs in a server without `maxmemory`."""

SMALL_BYTES: Final = 64 * 1024
"""The most bytes that travel in a batch of commands: more would delay other requests."""


class RedisBlobs:
    """A `protocol.BlobStore` in one Redis server, opened by `open_redis_blobs`.

    With `shares_server`, the store is in the same server under the same prefix. Methods with a
    digest raise `ValueError` for one that is no SHA-256 in lower-case hex.
    """

    listing_seconds: float | None = None

    def __init__(
        self, client: Client, keys: Keys, *, kind: str = "blob", shares_server: bool = False
    ) -> None:
        self.name = client.location
        self._client = client
        self._keys = keys
        self._kind = kind
        self._shares_server = shares_server

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `ttl_seconds`; putting them again can only extend that.

        Raises `StoreFull` if the server's memory is full.
        """
        key = self._key(digest)
        ttl = str(math.ceil(ttl_seconds * 1000)).encode()
        # Extend first: otherwise a blob could stop `SET` from writing and then expire.
        mark: Any = self._client.mark()
        put = ((b"PEXPIRE", key, ttl, b"GT"), (b"SET", key, data, b"NX", b"PX", ttl))
        await self._execute(*put, mark=mark)
        if self._kind == "blob":
            # The books may be on another server, so their wait does not cover these replicas.
            await self._client.confirm(mark, [key.decode()])

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> PutBlob | None:
        """The command that stores small bytes, if the store is in the same server."""
        if not self._shares_server or len(data) > SMALL_BYTES:
            return None
        check_digest(digest)
        return PutBlob(digest, data, ttl_seconds)

    async def get(self, digest: str) -> bytes | None:
        """The bytes; None if they are not stored."""
        found: bytes | None = (await self._execute((b"GET", self._key(digest))))[0]
        return found

    async def delete(self, digest: str) -> None:
        """Deletes the bytes if they are stored; also works in a full server."""
        # UNLINK frees the memory in a thread of the server; DEL would delay other commands.
        await self._execute((b"UNLINK", self._key(digest)))

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """As `BlobStore.scan`; a page may be empty although others follow."""
        pattern = match_pattern(self._keys.blob("*", kind=self._kind)).encode()
        cursor = after.encode() or b"0"
        scan = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", str(limit).encode())
        page = await self._client.scan(scan, cursor_at=1)
        if isinstance(page, RedisError):
            raise self._client.translate(page, "SCAN") from page
        next_cursor, keys = page
        # STRLEN is 0 for an empty blob and for one that has expired since: EXISTS tells them apart.
        exist = await self._execute(*((b"EXISTS", key) for key in keys))
        sizes = await self._execute(*((b"STRLEN", key) for key in keys))
        start = self._keys.blob("", kind=self._kind)
        return read_cursor(next_cursor), {
            key.decode().removeprefix(start): size
            for key, exists, size in zip(keys, exist, sizes, strict=True)
            if exists
        }

    async def capacity_bytes(self) -> int:
        """Half of the server's `maxmemory`, or 1 GiB if it has none; of a cluster, the sum of it.

        The node with the least memory decides, because blobs are spread evenly.
        """
        # Not CONFIG GET, which many hosted servers forbid. An ACL may forbid this too.
        infos = await self._client.execute_everywhere((b"INFO", b"memory"))
        return min(map(_capacity_of, infos)) * len(infos)

    def may_be_on(self, digest: str, node: str) -> bool:
        """Whether the node has the bytes; True if the node is not in this cluster."""
        return self._client.may_be_on(self._key(digest), node)

    async def sweep(self, limit: int) -> int:
        """0: Redis expires them itself."""
        return 0

    def remote(self) -> None:
        """None: reading all bytes is as cheap as reading a part."""

    def ephemeral(self) -> RedisBlobs:
        """The same server under other keys, for bytes that live for minutes."""
        return RedisBlobs(self._client, self._keys, kind="ephemeral")

    async def check_schema(self) -> None:
        """As `RedisStore.check_schema`, for a server that has only blobs."""
        await self._client.check(BLOB_COMMANDS)

    async def find_wait_refusal(self) -> str | None:
        """As `RedisClient.find_wait_refusal`."""
        return await self._client.find_wait_refusal()

    def _key(self, digest: str) -> bytes:
        check_digest(digest)
        return self._keys.blob(digest, kind=self._kind).encode()

    async def _execute(self, *commands: tuple[bytes, ...], mark: Any = None) -> list[Any]:
        replies = await self._client.execute(commands, mark)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, RedisError):
                raise self._client.translate(reply, command[0].decode()) from reply
        return replies


def _capacity_of(info: Any) -> int:
    found = re.search(rb"^maxmemory:(\d+)", info, re.MULTILINE) if isinstance(info, bytes) else None
    return (int(found[1]) // 2 if found is not None else 0) or DEFAULT_CAPACITY_BYTES


@asynccontextmanager
async def open_redis_blobs(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    may_create: bool = True,
    shares_server: bool = False,
) -> AsyncIterator[RedisBlobs]:
    """The blobs of a server with any eviction policy; opens as `open_redis_store` does.

    The connection is separate from the store's, so that images never delay a command. A server
    that evicts may evict the schema version; the next connection sets it again.
    """
    keys = Keys(prefix)
    client = create_client(url, keys=keys, may_create=may_create)
    async with client.open():
        yield RedisBlobs(client, keys, shares_server=shares_server)
