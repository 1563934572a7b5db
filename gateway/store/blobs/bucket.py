"""Blobs in a bucket of S3, Google Cloud Storage or Azure, through obstore.

The object of a blob is named `<prefix>/images/<digest>/<expiry>`: its SHA-256, and the moment at
which it expires. An object is written once and never extended. To extend a blob, a gateway writes
it again with a later expiry. So a sweep, or a lifecycle rule of the bucket, can delete an expired
object without a lock: no gateway can have extended it meanwhile.

A worker remembers the object of each blob that it has written or read. For another blob it lists
the few objects of the digest.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import obstore

from gateway.errors import StoreUnavailable
from gateway.imagefile.check import DOCUMENTS, MEDIA_TYPES, detect_format
from gateway.store.blobs.bucket_client import BucketErrors, bounded, create_client
from gateway.store.blobs.bucket_url import BucketUrl, parse_bucket_url
from gateway.store.blobs.digests import check_digest

MULTIPART_BYTES: Final = 8 << 20
"""Larger blobs are written in parts of this size."""

MAX_PARTS: Final = 4
"""Parts of one blob that are written at the same time."""

EXPIRY_STEPS: Final = 64
"""An expiry is rounded up to a multiple of the lifetime divided by this. A write that is repeated
soon therefore replaces its object instead of adding another."""

SWEEP_GRACE_SECONDS: Final = 60.0
"""How long an expired object is left, because the clocks of gateways differ."""

IMAGES_LISTING_SECONDS: Final = 6 * 3600.0
EPHEMERAL_LISTING_SECONDS: Final = 900.0

MAX_DELETIONS: Final = 16
"""Blobs that are deleted at the same time. An eviction names up to a thousand."""

MAX_REMEMBERED: Final = 20_000
"""Digests whose objects a worker remembers: about 5 MB."""

CHECK_TTL_SECONDS: Final = 600.0
"""How long a bucket keeps the blob of a check that could not delete it."""

LIST_PAGE: Final = 1000
"""Objects of one page of S3."""

_OBJECT: Final = re.compile(r"([0-9a-f]{64})/([0-9a-f]{12})")
_AFTER: Final = re.compile(r"|[0-9a-f]{64}/[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class CheckedBucket:
    """What `BucketBlobs.check` has measured of a usable bucket."""

    clock_difference_seconds: float
    """The bucket's clock, which has whole seconds, less this machine's."""
    keeps_versions: bool
    """Whether a deleted object stays in the bucket as an old version."""


class BucketBlobs:
    """A `BlobStore`, and a `RemoteBlobs`, in a bucket. `clock` returns Unix seconds.

    Methods with a digest raise `ValueError` for one that is no SHA-256 in lower-case hex.
    """

    def __init__(
        self,
        url: BucketUrl,
        clock: Callable[[], float] = time.time,
        *,
        folder: str = "images",
        listing_seconds: float = IMAGES_LISTING_SECONDS,
        errors: BucketErrors | None = None,
    ) -> None:
        self.name = url.location
        self.listing_seconds: float | None = listing_seconds
        self._url = url
        self._clock = clock
        self._client = create_client(url, folder)
        self._errors = errors or BucketErrors(url)
        self._expiries: OrderedDict[str, int] = OrderedDict()  # milliseconds, by digest
        self._copying = asyncio.Lock()
        self._deletions = asyncio.Semaphore(MAX_DELETIONS)
        self._swept_before = ""
        """The object at which the last sweep has stopped; empty if it has reached the end."""
        self._ephemeral: BucketBlobs | None = None

    # ── blobs ───────────────────────────────────────────────────────────────────────────────

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `ttl_seconds`; putting them again can only extend that."""
        check_digest(digest)
        expires_at = self._expiry(ttl_seconds)
        async with self._calling("writing"):
            await obstore.put_async(
                self._client,
                _object(digest, expires_at),
                data,
                attributes=_attributes(digest, data),
                use_multipart=len(data) > MULTIPART_BYTES,
                chunk_size=MULTIPART_BYTES,
                max_concurrency=MAX_PARTS,
            )
        self._remember(digest, max(expires_at, self._expiries.get(digest, 0)))

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """None: the store's commands do not write to a bucket."""

    async def get(self, digest: str) -> bytes | None:
        """The bytes; None if they are not stored, or expired."""
        return await self._read(digest, {})

    async def delete(self, digest: str) -> None:
        """Deletes every object of the bytes."""
        check_digest(digest)
        self._expiries.pop(digest, None)
        async with self._deletions:
            names = [meta["path"] async for meta in self._list(digest)]
            for name in names:
                # Some servers answer that an object is missing: another worker was faster.
                with suppress(FileNotFoundError):
                    async with self._calling("deleting", may_be_missing=True):
                        await obstore.delete_async(self._client, name)

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """As `BlobStore.scan`; the cursor is the name of an object."""
        if not _AFTER.fullmatch(after):
            raise ValueError("a cursor is one that the last page has returned")
        now, page, listed = self._clock() * 1000, dict[str, int](), 0
        async for meta in self._list(after=after, page=min(limit, LIST_PAGE)):
            after = meta["path"]
            found = _OBJECT.fullmatch(after)
            if found is not None and int(found[2], 16) > now:
                page[found[1]] = meta["size"]
            # Expired objects count too: otherwise one page might list the whole bucket.
            listed += 1
            if found is not None and (len(page) == limit or listed >= max(limit, LIST_PAGE)):
                return after, page
        return None, page

    async def capacity_bytes(self) -> None:
        """None: a bucket has no limit of its own."""

    def may_be_on(self, digest: str, node: str) -> bool:
        """True: their entries and rows in the index may be on any node."""
        return True

    async def sweep(self, limit: int) -> int:
        """Deletes up to `limit` expired objects. Goes on where the last call has stopped."""
        until = (self._clock() - SWEEP_GRACE_SECONDS) * 1000
        expired: list[str] = []
        async for meta in self._list(after=self._swept_before, page=LIST_PAGE):
            found = _OBJECT.fullmatch(meta["path"])
            if found is None or int(found[2], 16) > until:
                continue
            expired.append(meta["path"])
            if len(expired) == limit:
                break
        self._swept_before = expired[-1] if len(expired) == limit else ""
        for first in range(0, len(expired), LIST_PAGE):
            with suppress(FileNotFoundError):
                async with self._calling("deleting", may_be_missing=True):
                    await obstore.delete_async(self._client, expired[first : first + LIST_PAGE])
        return len(expired)

    def ephemeral(self) -> BucketBlobs:
        """Another folder of the bucket, for bytes that live for minutes."""
        if self._ephemeral is None:
            self._ephemeral = BucketBlobs(
                self._url,
                self._clock,
                folder="ephemeral",
                listing_seconds=EPHEMERAL_LISTING_SECONDS,
                errors=self._errors,
            )
        return self._ephemeral

    def remote(self) -> BucketBlobs:
        """Itself: a bucket can be read in parts, and by clients."""
        return self

    # ── remote blobs ────────────────────────────────────────────────────────────────────────

    async def size(self, digest: str) -> int | None:
        """How many bytes are stored; None if none are."""
        found = await self._locate(digest)
        return None if found is None else found[1]

    async def get_range(self, digest: str, part: range) -> bytes | None:
        """As `get`, of the bytes in a range that is not empty."""
        return await self._read(digest, {"range": (part.start, part.stop)})

    async def presign(self, digest: str, seconds: int) -> str | None:
        """A URL at which anyone can read the bytes for so long; None if they are not stored.

        Their type and disposition were fixed when they were stored. Raises `StoreUnavailable` if
        the credentials cannot sign.
        """
        found = await self._locate(digest)
        if found is None:
            return None
        async with self._calling("signing"):
            expires_in = timedelta(seconds=seconds)
            return await obstore.sign_async(
                self._client, "GET", _object(digest, found[0]), expires_in
            )

    # ── objects ─────────────────────────────────────────────────────────────────────────────

    async def _read(self, digest: str, options: Any) -> bytes | None:
        check_digest(digest)
        known = self._known(digest)
        if known is not None and (data := await self._get(digest, known, options)) is not None:
            return data
        found = await self._find(digest)
        return None if found is None else await self._get(digest, found[0], options)

    async def _get(self, digest: str, expires_at: int, options: Any) -> bytes | None:
        try:
            async with self._calling("reading", may_be_missing=True):
                name = _object(digest, expires_at)
                got = await obstore.get_async(self._client, name, options=options)
                data = await got.bytes_async()
        except FileNotFoundError:
            self._expiries.pop(digest, None)
            return None
        async with self._copying:
            copied = bytes(data)
            # Many reads may end at once. Other tasks run between the copies.
            await asyncio.sleep(0)
        return copied

    async def _locate(self, digest: str) -> tuple[int, int] | None:
        """The expiry and size of the object that lives longest; None if there is none."""
        check_digest(digest)
        known = self._known(digest)
        if known is not None:
            # HEAD has no body, so only the list below can tell that the whole bucket is missing.
            with suppress(FileNotFoundError):
                async with self._calling("reading", may_be_missing=True):
                    meta = await obstore.head_async(self._client, _object(digest, known))
                    return known, meta["size"]
        return await self._find(digest)

    async def _find(self, digest: str) -> tuple[int, int] | None:
        found: tuple[int, int] | None = None
        async for meta in self._list(digest):
            name = _OBJECT.fullmatch(meta["path"])
            if name is not None:
                found = max(found or (0, 0), (int(name[2], 16), meta["size"]))
        if found is None or found[0] <= self._clock() * 1000:
            self._expiries.pop(digest, None)
            return None
        self._remember(digest, found[0])
        return found

    async def _list(
        self, digest: str | None = None, *, after: str = "", page: int = LIST_PAGE
    ) -> AsyncIterator[Any]:
        """The objects of a digest, or all after an object, in the order of their names."""
        pages = obstore.list(self._client, digest, offset=after or None, chunk_size=page)
        while True:
            async with self._calling("listing"):
                metas = await anext(pages, None)
            if not metas:
                return
            for meta in metas:
                # Some servers begin with the object itself, or ignore where a list is to begin.
                if meta["path"] > after:
                    yield meta

    @asynccontextmanager
    async def _calling(self, doing: str, *, may_be_missing: bool = False) -> AsyncIterator[None]:
        """The deadline and the errors of one call: see `BucketErrors.translated`."""
        with self._errors.translated(doing, may_be_missing=may_be_missing):
            async with bounded():
                yield

    def _expiry(self, ttl_seconds: float) -> int:
        step = max(1, math.ceil(ttl_seconds * 1000 / EXPIRY_STEPS))
        return math.ceil((self._clock() + ttl_seconds) * 1000 / step) * step

    def _known(self, digest: str) -> int | None:
        """The expiry of an object that this worker knows and that has not expired."""
        expires_at = self._expiries.get(digest, 0)
        return expires_at if expires_at > self._clock() * 1000 else None

    def _remember(self, digest: str, expires_at: int) -> None:
        self._expiries[digest] = expires_at
        self._expiries.move_to_end(digest)
        if len(self._expiries) > MAX_REMEMBERED:
            self._expiries.popitem(last=False)

    # ── checks ──────────────────────────────────────────────────────────────────────────────

    async def check(self, data: bytes, digest: str, *, signs: bool = False) -> CheckedBucket:
        """Writes, reads, lists and deletes a blob; with `signs`, also signs its URL.

        Raises `StoreUnavailable`, whose reason names the fault.
        """
        written_at = self._clock()
        await self.put(digest, data, CHECK_TTL_SECONDS)
        name = _object(digest, self._expiries[digest])
        try:
            async with self._calling("reading"):
                meta = await obstore.head_async(self._client, name)
            self._expiries.pop(digest, None)  # so that `get` has to list the objects
            if await self.get(digest) != data:
                raise StoreUnavailable(
                    reason=f"{self.name} did not return the bytes that were written to it."
                )
            if signs:
                await self.presign(digest, 1)
        finally:
            await self.delete(digest)
        # Other providers give every object a version, even if they keep no old ones.
        has_version = self._url.scheme == "s3" and meta["version"] not in (None, "null")
        return CheckedBucket(meta["last_modified"].timestamp() - written_at, has_version)


def _object(digest: str, expires_at: int | None) -> str:
    return f"{digest}/{expires_at or 0:012x}"


def _attributes(digest: str, data: bytes) -> dict[str, str]:
    """The headers that the bucket answers with, also to clients that are sent there."""
    kind = detect_format(data)
    if kind is None:
        return {"Content-Type": "application/octet-stream"}
    disposition = "attachment" if kind in DOCUMENTS else "inline"
    return {
        "Content-Type": MEDIA_TYPES[kind],
        "Content-Disposition": f'{disposition}; filename="img-{digest[:12]}.{kind}"',
        "Cache-Control": "private, max-age=60",
    }


@asynccontextmanager
async def open_bucket_blobs(url: str) -> AsyncIterator[BucketBlobs]:
    """The blobs of a bucket, which is not asked before the first call."""
    yield BucketBlobs(parse_bucket_url(url))
