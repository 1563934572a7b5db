"""The stored results of idempotency keys.

A key of a client names one request for a day. While the request is answered, a lock says so and
is renewed. If the worker that renews it dies, the lock expires and the next request starts over.

However many requests of a worker wait for a lock, the worker watches it once, and passes what it
learns to all of them. A purchase's result is always stored. One that cost nothing is stored while
its gateway key has few of those: such a request can be answered again for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.errors import StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    AddToBoundedSets,
    BoundedSet,
    DeleteValue,
    GetValue,
    Notify,
    SetValue,
)
from gateway.store.protocol import Store, Watch
from gateway.tasks import OwnedTasks

SPACE: Final = "idempotency"

RESULT_SECONDS: Final = 86_400.0
"""How long a result is stored."""

LOCK_SECONDS: Final = 15.0
"""How long a lock lasts that is not renewed."""

RENEW_SECONDS: Final = 5.0

RETRY_SECONDS: Final = 1.0
"""When a renewal, or the result of a purchase, is repeated that the store did not take."""

RECHECK_SECONDS: Final = 2.0
"""How often a worker checks a lock of another worker without a notification."""

MAX_FREE_RESULTS: Final = 1000
"""Stored results of one gateway key that cost nothing: in Redis about 1.4 MB."""


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """An idempotency key of one client, and the request that it was sent with."""

    name: str
    request: str
    """A hash of the request: equal for equal requests, however they are spelled."""
    key_id: str

    @staticmethod
    def of(key_id: str, idempotency_key: str, *, request: tuple[object, ...]) -> IdempotentRequest:
        """The same idempotency key of another gateway key is another one."""
        # As JSON, because two different pairs could be equal once they are joined.
        name = hashlib.sha256(orjson.dumps([key_id, idempotency_key])).hexdigest()
        return IdempotentRequest(name, hashlib.sha256(orjson.dumps(request)).hexdigest(), key_id)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The request that an idempotency key was first sent with, and its result."""

    request: str
    images: Mapping[int, Image] = field(default_factory=dict)
    """In the order of the answer."""
    failure: UpstreamFailure | None = None
    encoded: bytes | None = None
    """As the store has it."""


class _Wait:
    """The requests of this worker that wait for one idempotency key.

    One of them either holds the lock, or waits for another worker's lock on behalf of all.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.request: asyncio.Future[str | None] = loop.create_future()
        """Which request is being answered, as soon as that is known."""
        self.result: asyncio.Future[StoredResult | StoreUnavailable | None] = loop.create_future()
        """None: the lock was released, and the next request tries."""

    def know(self, request: str | None) -> None:
        if not self.request.done():
            self.request.set_result(request)

    def end(self, result: StoredResult | StoreUnavailable | None) -> None:
        self.know(result.request if isinstance(result, StoredResult) else None)
        if not self.result.done():
            self.result.set_result(result)


class IdempotencyKeys:
    """Locks idempotency keys and stores their results."""

    def __init__(self, store: Store, tasks: OwnedTasks) -> None:
        self._store = store
        self._tasks = tasks
        self._waits: dict[str, _Wait] = {}
        """By idempotency key, while a request of this worker holds its lock or waits for it."""

    async def acquire(self, idempotent: IdempotentRequest) -> StoredResult | None:
        """The stored result, or None: then the caller holds the lock and has to answer.

        Until it calls `store`, `store_failure` or `release`, other requests with this key wait.
        Waits while another request with this key is answered. Raises `StoreUnavailable`.
        """
        while (wait := self._waits.get(idempotent.name)) is not None:
            # Shielded: a request that is cancelled must not cancel the future of the others.
            request = await asyncio.shield(wait.request)
            # Another request is refused at once.
            if request is not None and request != idempotent.request:
                return StoredResult(request)
            result = await asyncio.shield(wait.result)
            if isinstance(result, StoreUnavailable):
                raise StoreUnavailable
            if result is not None:
                return result
        wait = self._waits[idempotent.name] = _Wait()
        try:
            result = await self._acquire_in_store(idempotent, wait)
        except StoreUnavailable as failure:
            # The others would only wait as long for the same failure, one after the other.
            self._end(idempotent, failure)
            raise
        except BaseException:
            self._end(idempotent, None)
            raise
        if result is not None:
            wait.know(result.request)
            # Another request's lock refuses this one. Those that wait with the locked request wait
            # for its result.
            self._end(idempotent, None if result.encoded is None else result)
        return result

    async def _acquire_in_store(
        self, idempotent: IdempotentRequest, wait: _Wait
    ) -> StoredResult | None:
        lock = SetValue(
            SPACE, idempotent.name, _encode_lock(idempotent), LOCK_SECONDS, only_if_absent=True
        )
        watch: Watch | None = None
        async with AsyncExitStack() as stack:
            while not await execute(self._store, lock):
                value = await execute(self._store, GetValue(SPACE, idempotent.name))
                if value is not None:
                    found = _decode_result(value)
                    # The same request waits while the value is a lock.
                    if found.request != idempotent.request or found.encoded is not None:
                        return found
                    wait.know(found.request)
                if watch is None:
                    # Watch before the next look, or a result between the two wakes nothing.
                    watching = self._store.watch(_channel(idempotent))
                    watch = await stack.enter_async_context(watching)
                else:
                    await watch.wait(RECHECK_SECONDS)
        wait.know(idempotent.request)
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
        pause = RENEW_SECONDS
        while True:
            await asyncio.sleep(pause)
            async with writing:
                try:
                    await execute(self._store, lock)
                    pause = RENEW_SECONDS
                except StoreUnavailable:
                    # A lock that expired meanwhile is free until it is renewed.
                    pause = RETRY_SECONDS

    async def store(
        self, idempotent: IdempotentRequest, images: Sequence[Image], *, is_free: bool = False
    ) -> bool:
        """Stores images as the result of a repeated request.

        False, and the lock is released, if the result is free and the gateway key has too many of
        those. The requests that wait in this worker get it all the same.
        """
        by_position = {str(position): image for position, image in enumerate(images)}
        try:
            return await self._store_result(idempotent, {"images": by_position}, is_free=is_free)
        finally:
            result = StoredResult(idempotent.request, images=dict(enumerate(images)))
            self._end(idempotent, result)

    async def store_failure(self, idempotent: IdempotentRequest, failure: UpstreamFailure) -> None:
        """Stores a failure that was, or may have been, charged as the result."""
        try:
            await self._store_result(idempotent, {"images": {}, "failure": failure.to_dict()})
        finally:
            self._end(idempotent, StoredResult(idempotent.request, failure=failure))

    async def release(self, idempotent: IdempotentRequest) -> None:
        """Releases the lock without a result: a repeated request tries again."""
        try:
            await self._release(idempotent, _encode_lock(idempotent))
        finally:
            self._end(idempotent, None)

    async def forget(self, idempotent: IdempotentRequest, result: StoredResult) -> None:
        """Deletes a stored result whose images are lost, unless another request has done so."""
        if result.encoded is not None:
            await self._release(idempotent, result.encoded)

    async def _release(self, idempotent: IdempotentRequest, expected: bytes) -> None:
        batch = Batch(self._store)
        batch.add(DeleteValue(SPACE, idempotent.name, expected))
        _notify(batch, idempotent)
        # A lock that cannot be deleted expires by itself.
        with suppress(StoreUnavailable):
            await batch.execute()

    async def _store_result(
        self, idempotent: IdempotentRequest, result: Mapping[str, Any], *, is_free: bool = False
    ) -> bool:
        value = orjson.dumps({"request": idempotent.request, **result}, default=dict)
        if not is_free:
            await self._store_purchase(idempotent, value)
            return True
        batch = self._set_result(idempotent, value)
        bounds = (BoundedSet(SPACE, idempotent.key_id, MAX_FREE_RESULTS),)
        has_room = batch.add(AddToBoundedSets(bounds, (idempotent.name,), RESULT_SECONDS))
        # Without a result the images are still in their entry, and a repeated request finds them.
        with suppress(StoreUnavailable):
            await batch.execute()
            if not has_room.value:
                # Deleted again rather than asked for first: most keys have room.
                await self._release(idempotent, value)
                return False
        return True

    async def _store_purchase(self, idempotent: IdempotentRequest, value: bytes) -> None:
        try:
            await self._set_result(idempotent, value).execute()
        except StoreUnavailable:
            # The client does not wait. A repeated request that refuses stored images would buy
            # again without this result.
            self._tasks.start(self._store_later(idempotent, value), name="store idempotent result")

    async def _store_later(self, idempotent: IdempotentRequest, value: bytes) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            with suppress(StoreUnavailable):
                await self._set_result(idempotent, value).execute()
                return

    def _set_result(self, idempotent: IdempotentRequest, value: bytes) -> Batch:
        batch = Batch(self._store)
        batch.add(SetValue(SPACE, idempotent.name, value, RESULT_SECONDS))
        _notify(batch, idempotent)
        return batch

    def _end(
        self, idempotent: IdempotentRequest, result: StoredResult | StoreUnavailable | None
    ) -> None:
        """Tells the requests of this worker that wait for the key."""
        wait = self._waits.pop(idempotent.name, None)
        if wait is not None:
            wait.end(result)


def _channel(idempotent: IdempotentRequest) -> str:
    """The name under which the store notifies the watches of an idempotency key."""
    return f"{SPACE}:{idempotent.name}"


def _notify(batch: Batch, idempotent: IdempotentRequest) -> None:
    batch.add(Notify(_channel(idempotent)))


def _encode_lock(idempotent: IdempotentRequest) -> bytes:
    return orjson.dumps({"request": idempotent.request})


def _decode_result(value: bytes) -> StoredResult:
    """A stored result; a lock has no `encoded`."""
    data = orjson.loads(value)
    if "images" not in data:
        return StoredResult(data["request"])
    failure = data.get("failure")
    return StoredResult(
        data["request"],
        images={int(n): Image.from_dict(image) for n, image in data["images"].items()},
        failure=UpstreamFailure.from_dict(failure) if failure else None,
        encoded=value,
    )
