"""Blobs in Redis."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import ResponseError

from gateway.store.commands import PutBlob
from gateway.store.redis.client import Link, place_of, pool_of, refusal
from gateway.store.redis.commands import read_cursor
from gateway.store.redis.keys import Keys, pattern_of
from gateway.store.redis.store import DEFAULT_PREFIX

UNLIMITED_BYTES: Final = 1 << 30
"""What images may take in a server that has no limit of its own."""

SMALL_BYTES: Final = 64 * 1024
"""Bytes that may travel with verbs: more would hold up those of others."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class RedisBlobs:
    """Image bytes by content hash (`verbs.BlobStore`), each with a time to live."""

    def __init__(
        self, link: Link, keys: Keys, *, kind: str = "blob", is_beside_verbs: bool = False
    ) -> None:
        self._link = link
        self._keys = keys
        self._kind = kind
        self._is_beside_verbs = is_beside_verbs
        """The verbs of batches go to the same server, and keep its bytes under the same names."""

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `lifetime_seconds` from now; repeating it only prolongs.

        Raises StoreFull when the server's memory is full, StoreUnavailable when it is away.
        """
        key = self._key(digest)
        lifetime = str(math.ceil(ttl_seconds * 1000)).encode()
        # Prolong first: what is there cannot run out any more before it keeps `SET` from writing.
        await self._ask(
            (b"PEXPIRE", key, lifetime, b"GT"), (b"SET", key, data, b"NX", b"PX", lifetime)
        )

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> PutBlob | None:
        """The command that stores small bytes, where commands go to the same server."""
        if not self._is_beside_verbs or len(data) > SMALL_BYTES:
            return None
        _check_digest(digest)
        return PutBlob(digest, data, ttl_seconds)

    async def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are gone. Raises StoreUnavailable."""
        found: bytes | None = (await self._ask((b"GET", self._key(digest))))[0]
        return found

    async def delete(self, digest: str) -> None:
        """Removes them, if they are there, also from a full server. Raises StoreUnavailable."""
        await self._ask((b"UNLINK", self._key(digest)))

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """About `limit` digests with their sizes in bytes, and the next mark.

        A page may be empty although others follow. Raises StoreUnavailable.
        """
        pattern = pattern_of(self._keys.bytes_of(self._kind, "*")).encode()
        cursor = after.encode() or b"0"
        ((mark, found),) = await self._ask(
            (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", str(limit).encode())
        )
        exist = await self._ask(*((b"EXISTS", key) for key in found))
        sizes = await self._ask(*((b"STRLEN", key) for key in found))
        return read_cursor(mark), {
            key.decode().removeprefix(self._keys.bytes_of(self._kind, "")): size
            for key, is_there, size in zip(found, exist, sizes, strict=True)
            if is_there
        }

    async def capacity_bytes(self) -> int:
        """Half of the server's `maxmemory`, or 1 GiB where it has none. Raises StoreUnavailable."""
        (said,) = await self._ask((b"INFO", b"memory"))
        (most,) = re.findall(rb"^maxmemory:(\d+)", said, re.MULTILINE)
        return int(most) // 2 or UNLIMITED_BYTES

    def ephemeral(self) -> RedisBlobs:
        """The same server under other names, for bytes that live for minutes."""
        return RedisBlobs(self._link, self._keys, kind="passing")

    async def check_schema(self) -> None:
        """As `RedisStore.check_layout`, for a server that has only bytes."""
        await self._link.check_schema()

    def _key(self, digest: str) -> bytes:
        _check_digest(digest)
        return self._keys.bytes_of(self._kind, digest).encode()

    async def _ask(self, *commands: tuple[bytes, ...]) -> list[Any]:
        replies = await self._link.exchange(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ResponseError):
                raise refusal(reply, command[0].decode()) from reply
        return replies


def _check_digest(digest: str) -> None:
    """A digest becomes a key's name, so nothing but a digest may pass."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"This is no SHA-256 in lower-case hex: {digest!r}.")


@asynccontextmanager
async def open_redis_blobs(
    url: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    may_create: bool = True,
    is_beside_verbs: bool = False,
) -> AsyncIterator[RedisBlobs]:
    """The blobs of a server of any eviction policy; opens as `open_redis_store` does.

    They have a connection of their own, so that images never delay a command. With
    `is_beside_verbs` the store is in the same server, and small blobs may travel in its batches.
    A server that evicts may lose the schema version; the next connection sets it again.
    """
    keys = Keys(prefix)
    link = Link(pool_of(url), place_of(url), stamp_key=keys.layout, may_create=may_create)
    async with link.open():
        yield RedisBlobs(link, keys, is_beside_verbs=is_beside_verbs)
