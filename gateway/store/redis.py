"""The store in Redis: for teams, several gateways on one server.

All state lies under one prefix, `igw:` unless told otherwise:

| key | type | what | time to live |
|---|---|---|---|
| `igw:layout` | string | the layout's version | none |
| `igw:{books}:records:<space>` | hash | records by name | none |
| `igw:{books}:bucket:<scope>:<unit>` | hash | `level`, `at` of a token bucket | 2 minutes |
| `igw:{books}:window:<scope>:day:<yyyy-mm-dd>`, `…:month:<yyyy-mm>` | hash | `<unit>:spent`, \
`<unit>:reserved` | 7 days after the window |
| `igw:{books}:window:<scope>:open` | hash | `<unit>:reserved` right now | none; gone at zero |
| `igw:{books}:journal:<purchase>` | hash | a purchase | none while open, then 7 days |
| `igw:{books}:open:<worker>` | sorted set | its open purchases by time | none; gone when empty |
| `igw:{books}:workers` | sorted set | workers by their last beat | none |
| `igw:{books}:ledger:<yyyy-mm-dd>` | stream | a day's records | none |
| `igw:{books}:ledger-days` | sorted set | the days that have a stream | none |
| `igw:{books}:appended:<batch>` | string | ids of what was appended | an hour |
| `igw:note:<space>:<name>` | string | a note | as the note says |
| `igw:list:<space>:<name>` | set | a list's members | the longest asked for |
| `igw:{shelf}:used`, `…:ends` | sorted sets | digests by their last use, and by the end of their \
stay | none; gone when empty |
| `igw:{shelf}:sizes` | hash | bytes by digest | none; gone when empty |
| `igw:{shelf}:total` | string | their sum | none; gone at zero |
| `igw:entry:{<fingerprint>}` | hash | pictures by slot | their lifetime + linger |
| `igw:claims:{<fingerprint>}` | hash | flights by slot | the longest lease |
| `igw:flight:{<flight>}` | list | its events | the flight's lifetime |
| `igw:flight-ids:{<flight>}` | set | the ids of its events | the same |
| `igw:blob:<sha256>` | string | a picture's bytes | the longest asked for |
| `igw:passing:<sha256>` | string | a partial image's bytes | minutes, as asked for |
| `igw:wake:<flight>` | channel | rings when an event was published | – |

No script touches two hash slots, so a cluster could hold this: the books are one slot, the shelf is
one, everything else spreads. (The scan of entries takes what is on its node.) What a verb is in
Redis' terms is `redis_calls` and `lua/`; how commands travel is `redis_link`; waiting is
`redis_wakes`. Here they are put together.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from redis.exceptions import ResponseError

from gateway.store.redis_calls import (
    SCRIPTS,
    Call,
    Keys,
    call_for,
    pattern_of,
    read_cursor,
)
from gateway.store.redis_link import Link, place_of, pool_of, refusal
from gateway.store.redis_wakes import Wakes
from gateway.store.verbs import Batch, PutBlob, Verb, Watch

DEFAULT_PREFIX: Final = "igw:"

UNLIMITED_BYTES: Final = 1 << 30
"""What pictures may take in a server that has no limit of its own."""

SMALL_BYTES: Final = 64 * 1024
"""Bytes that may travel with verbs: more would hold up those of others."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class RedisBlobs:
    """Picture bytes by content hash (`verbs.BlobStore`), each with a time to live."""

    def __init__(
        self, link: Link, keys: Keys, *, kind: str = "blob", is_beside_verbs: bool = False
    ) -> None:
        self._link = link
        self._keys = keys
        self._kind = kind
        self._is_beside_verbs = is_beside_verbs
        """The verbs of batches go to the same server, and keep its bytes under the same names."""

    async def put(self, digest: str, data: bytes, lifetime_seconds: float) -> None:
        """Stores bytes for at least `lifetime_seconds` from now; repeating it only prolongs.

        Raises StoreFull when the server's memory is full, StoreUnavailable when it is away.
        """
        key = self._key(digest)
        lifetime = str(math.ceil(lifetime_seconds * 1000)).encode()
        # Prolong first: what is there cannot run out any more before it keeps `SET` from writing.
        await self._ask(
            (b"PEXPIRE", key, lifetime, b"GT"), (b"SET", key, data, b"NX", b"PX", lifetime)
        )

    def add(self, batch: Batch, digest: str, data: bytes, lifetime_seconds: float) -> bool:
        """Has a batch of the store beside these store a few bytes; False where it cannot."""
        if not self._is_beside_verbs or len(data) > SMALL_BYTES:
            return False
        _check_digest(digest)
        batch.add(PutBlob(digest, data, lifetime_seconds))
        return True

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

    def passing(self) -> RedisBlobs:
        """The same server under other names, for bytes that live for minutes."""
        return RedisBlobs(self._link, self._keys, kind="passing")

    async def check_layout(self) -> None:
        """As `RedisStore.check_layout`, for a server that has only bytes."""
        await self._link.check_layout()

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


class RedisStore:
    """`verbs.Store` over one Redis server. Made by `open_redis_store`."""

    def __init__(
        self, place: str, *, keys: Keys, link: Link, wakes: Wakes, blobs: RedisBlobs
    ) -> None:
        self.name = place
        self.blobs = blobs
        self._keys = keys
        self._link = link
        self._wakes = wakes

    async def run(self, verbs: Sequence[Verb[Any]]) -> list[Any]:
        """Runs verbs in order; their answers in the same order.

        Batches of concurrent callers share round trips. Raises `errors.StoreUnavailable` when
        the server is away, read-only, of another layout or silent for two seconds, StoreFull when
        its memory is full, and RuntimeError when it refuses a command, which is a fault of ours.
        """
        if not verbs:
            return []
        calls = [call_for.registry[type(verb)](verb, self._keys) for verb in verbs]
        replies = await self._link.run(calls)
        return [
            _answer(verb, call, reply)
            for verb, call, reply in zip(verbs, calls, replies, strict=True)
        ]

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* the look-up that decides to wait."""
        return self._wakes.watch(self._keys.wake(flight))

    async def check_layout(self) -> None:
        """Stamps a server that is empty or older.

        Raises `LayoutMismatch`, `StoreMissing`, `StoreUnavailable`.

        For whoever starts the gateway; a worker need not: nothing is ever sent to a server whose
        stamp was not seen.
        """
        await self._link.check_layout()


def _answer(verb: Verb[Any], call: Call, reply: Any) -> Any:
    if isinstance(reply, ResponseError):
        raise refusal(reply, type(verb).__name__) from reply
    return call.read(reply)


@asynccontextmanager
async def open_redis_store(
    url: str, *, prefix: str = DEFAULT_PREFIX, may_create: bool = True
) -> AsyncIterator[RedisStore]:
    """The store at a `redis://`, `rediss://` or `unix://` URL.

    An empty server becomes a store at the first contact, unless that may not be: whoever only
    looks calls `check_layout`, which then raises `StoreMissing`.

    Sends nothing yet, so a worker can start while Redis is down; it connects, and reconnects, by
    itself. Raises ValueError for a URL that it cannot use, never quoting its password.
    """
    place, keys, pool = place_of(url), Keys(prefix), pool_of(url)
    link = Link(
        pool,
        place,
        stamp_key=keys.layout,
        scripts=tuple(SCRIPTS.values()),
        may_create=may_create,
    )
    wakes = Wakes(pool)
    bytes_link = _bytes_link(url, keys, may_create=may_create)
    blobs = RedisBlobs(bytes_link, keys, is_beside_verbs=True)
    async with link.open(), wakes.open(), bytes_link.open():
        yield RedisStore(place, keys=keys, link=link, wakes=wakes, blobs=blobs)


@asynccontextmanager
async def open_redis_blobs(
    url: str, *, prefix: str = DEFAULT_PREFIX, may_create: bool = True
) -> AsyncIterator[RedisBlobs]:
    """Only the bytes, for a second server of any eviction policy; as `open_redis_store`.

    They have a connection of their own, so that pictures never hold up a verb. A server that
    evicts whatever it likes may lose the stamp as well; it is set again when next a connection is
    greeted.
    """
    keys = Keys(prefix)
    link = _bytes_link(url, keys, may_create=may_create)
    async with link.open():
        yield RedisBlobs(link, keys)


def _bytes_link(url: str, keys: Keys, *, may_create: bool) -> Link:
    return Link(pool_of(url), place_of(url), stamp_key=keys.layout, may_create=may_create)
