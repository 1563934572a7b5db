"""The stored results of idempotency keys.

A key of a client names one request for a day. While the request is answered, a lock says so and
is renewed. If the worker that renews it dies, the lock expires and the next request starts over.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.errors import StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import execute
from gateway.store.commands import DeleteValue, GetValue, SetValue
from gateway.store.protocol import Store

SPACE: Final = "idempotency"

RESULT_SECONDS: Final = 86_400.0
"""How long a result is stored."""

LOCK_SECONDS: Final = 15.0
"""How long a lock lasts that is not renewed."""

RENEW_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.2
"""How often a repeated request checks whether the first one has its result."""


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """An idempotency key of one client, and the request that it was sent with."""

    name: str
    request: str
    """A hash of the request: equal for equal requests, however they are spelled."""

    @staticmethod
    def of(key_id: str, idempotency_key: str, *, request: tuple[object, ...]) -> IdempotentRequest:
        """The same idempotency key of another gateway key is another one."""
        # As JSON, because two different pairs could be equal once they are joined.
        name = hashlib.sha256(orjson.dumps([key_id, idempotency_key])).hexdigest()
        return IdempotentRequest(name, hashlib.sha256(orjson.dumps(request)).hexdigest())


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The request that an idempotency key was first sent with, and its result."""

    request: str
    images: Mapping[int, Image] = field(default_factory=dict)
    """In the order of the answer."""
    failure: UpstreamFailure | None = None


class IdempotencyKeys:
    """Locks idempotency keys and stores their results."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def acquire(self, idempotent: IdempotentRequest) -> StoredResult | None:
        """The stored result, or None: then the caller holds the lock and has to answer.

        Waits while another request with this key is answered. Raises `StoreUnavailable`.
        """
        lock = SetValue(
            SPACE, idempotent.name, _encode_lock(idempotent), LOCK_SECONDS, only_if_absent=True
        )
        while not await execute(self._store, lock):
            value = await execute(self._store, GetValue(SPACE, idempotent.name))
            data = orjson.loads(value) if value is not None else {}
            # Another request is refused at once. The same one waits while the value is a lock,
            # which has no images.
            is_other = data.get("request", idempotent.request) != idempotent.request
            if is_other or "images" in data:
                return _decode_result(data)
            await asyncio.sleep(POLL_SECONDS)
        return None

    @asynccontextmanager
    async def renewing(self, idempotent: IdempotentRequest) -> AsyncIterator[None]:
        """Renews the lock meanwhile. A result that is stored afterwards is never overwritten."""
        writing = asyncio.Lock()
        renewal = asyncio.create_task(
            self._renew(idempotent, writing), name="renew idempotency lock"
        )
        try:
            yield
        finally:
            async with writing:  # a renewal under way could reach the store after the result
                renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    async def _renew(self, idempotent: IdempotentRequest, writing: asyncio.Lock) -> None:
        lock = SetValue(SPACE, idempotent.name, _encode_lock(idempotent), LOCK_SECONDS)
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            async with writing:
                # A lock lasts for three intervals, so one failed renewal does no harm.
                with suppress(StoreUnavailable):
                    await execute(self._store, lock)

    async def store(self, idempotent: IdempotentRequest, images: Sequence[Image]) -> None:
        """Stores images as the result of a repeated request."""
        by_position = {str(position): image for position, image in enumerate(images)}
        await self._store_result(idempotent, {"images": by_position})

    async def store_failure(self, idempotent: IdempotentRequest, failure: UpstreamFailure) -> None:
        """Stores a failure that was, or may have been, charged as the result."""
        await self._store_result(idempotent, {"images": {}, "failure": failure.to_dict()})

    async def release(self, idempotent: IdempotentRequest) -> None:
        """Releases the lock without a result: a repeated request tries again."""
        # A lock that cannot be deleted expires by itself.
        with suppress(StoreUnavailable):
            await execute(self._store, DeleteValue(SPACE, idempotent.name))

    async def _store_result(self, idempotent: IdempotentRequest, result: Mapping[str, Any]) -> None:
        value = orjson.dumps({"request": idempotent.request, **result}, default=dict)
        # Without a result the images are still in their entry, and a repeated request finds them.
        with suppress(StoreUnavailable):
            await execute(self._store, SetValue(SPACE, idempotent.name, value, RESULT_SECONDS))


def _encode_lock(idempotent: IdempotentRequest) -> bytes:
    return orjson.dumps({"request": idempotent.request})


def _decode_result(data: Mapping[str, Any]) -> StoredResult:
    failure = data.get("failure")
    return StoredResult(
        data["request"],
        images={int(n): Image.from_dict(image) for n, image in data.get("images", {}).items()},
        failure=UpstreamFailure.from_dict(failure) if failure else None,
    )
