"""The stored results of idempotency keys.

A key of a client names one request for a day. While the request is answered, a lock says so and
is renewed. If the worker that renews it dies, the lock expires and the next request starts over.
A purchase takes the lock over before anything is sent, and its settlement ends it: with the result
if the purchase was charged, in the same batch. So the key is as durable as the journal.

However many requests of a worker wait for a lock, the worker watches it once, and passes what it
learns to all of them. A result that cost nothing is stored while its gateway key has few of those:
such a request can be answered again for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import structlog

from gateway.cache.idempotency_results import (
    IdempotentRequest,
    StoredResult,
    decode_result,
    encode_failure,
    encode_images,
    encode_lock,
    worker_died,
)
from gateway.errors import StoreUnavailable, UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import (
    AddToBoundedSets,
    BoundedSet,
    DeleteValue,
    GetValue,
    Notify,
    ReadJournalState,
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
"""The pause before a renewal, or the storing of a result, is repeated after it failed."""

STORE_WAIT_SECONDS: Final = 2.0
"""How long a client waits at most for its result to be stored."""

RECHECK_SECONDS: Final = 2.0
"""How often a worker checks a lock of another worker without a notification."""

MAX_FREE_RESULTS: Final = 1000
"""Stored results of one gateway key that cost nothing: in Redis about 1.4 MB."""

Settling = Collection[asyncio.Task[Any]]
"""The tasks that settle or cancel a request's purchases, and with them store its result."""

log = structlog.get_logger(__name__)


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
        self._storing: dict[str, tuple[StoredResult, asyncio.Task[None]]] = {}
        """Results of purchases by idempotency key, until the store has them."""

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
        if (storing := self._storing.get(idempotent.name)) is not None:
            return storing[0]
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
            SPACE, idempotent.name, encode_lock(idempotent), LOCK_SECONDS, only_if_absent=True
        )
        watch: Watch | None = None
        has_waited = False
        async with AsyncExitStack() as stack:
            while not await execute(self._store, lock):
                value = await execute(self._store, GetValue(SPACE, idempotent.name))
                found = None if value is None else decode_result(value)
                if value is not None and found is None:
                    # An unreadable value counts as none: the request is answered like a first one.
                    await self._release(idempotent, value)
                    continue
                if value is not None and found is not None:
                    # The same request waits while the value is a lock.
                    if found.request != idempotent.request or found.encoded is not None:
                        return found
                    wait.know(found.request)
                    if has_waited:
                        await self._end_closed_purchase(idempotent, found, value)
                if watch is None:
                    # Watch before the next look, or a result between the two wakes nothing.
                    watching = self._store.watch(_channel(idempotent))
                    watch = await stack.enter_async_context(watching)
                else:
                    await watch.wait(RECHECK_SECONDS)
                    has_waited = True
        wait.know(idempotent.request)
        return None

    async def _end_closed_purchase(
        self, idempotent: IdempotentRequest, found: StoredResult, value: bytes
    ) -> None:
        """Ends the lock of a purchase whose journal is closed.

        A settlement stores the result before it closes the journal. There is a lock without a
        journal only if the journal could not be read, or if the store has lost it.
        """
        if found.purchase is None or found.lock is None:
            return
        state = await execute(self._store, ReadJournalState(found.purchase))
        if state in ("queued", "reserved", "received"):
            return
        log.warning("idempotency_lock_abandoned", purchase=found.purchase, journal=state)
        holder = replace(idempotent, lock=found.lock)
        batch = Batch(self._store)
        result = encode_failure(holder, worker_died())
        batch.add(SetValue(SPACE, holder.name, result, RESULT_SECONDS, expected=(value,)))
        notify(batch, holder)
        await batch.execute()

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
        lock = encode_lock(idempotent)
        # A lock that expired while the store was unavailable is taken again if it is still free.
        renew = SetValue(
            SPACE, idempotent.name, lock, LOCK_SECONDS, only_if_absent=True, expected=(lock,)
        )
        pause = RENEW_SECONDS
        while True:
            await asyncio.sleep(pause)
            async with writing:
                try:
                    await execute(self._store, renew)
                    pause = RENEW_SECONDS
                except StoreUnavailable:
                    pause = RETRY_SECONDS

    async def store(
        self,
        idempotent: IdempotentRequest,
        images: Sequence[Image],
        *,
        is_free: bool = False,
        settling: Settling = (),
    ) -> bool:
        """Stores images as the result of a repeated request.

        False, and the lock is released, if the result is free and the gateway key has too many of
        those. The requests that wait in this worker get it all the same. The settlement of a
        purchase has stored its own images; here those of the whole answer follow.
        """
        value = encode_images(idempotent, images)
        result = StoredResult(idempotent.request, images=dict(enumerate(images)))
        try:
            if is_free:
                return await self._store_free(idempotent, value)
            await self._start(self._complete(idempotent, value), settling, idempotent, result)
            return True
        finally:
            self._end(idempotent, result)

    async def store_failure(
        self, idempotent: IdempotentRequest, failure: UpstreamFailure, *, settling: Settling
    ) -> None:
        """Stores a failure that was, or may have been, charged as the result, as `store`."""
        value = encode_failure(idempotent, failure)
        result = StoredResult(idempotent.request, failure=failure)
        try:
            await self._start(self._complete(idempotent, value), settling, idempotent, result)
        finally:
            self._end(idempotent, result)

    async def release(self, idempotent: IdempotentRequest, *, settling: Settling = ()) -> None:
        """Releases the lock without a result: a repeated request tries again."""
        try:
            await self._start(self._release(idempotent, encode_lock(idempotent)), settling)
        finally:
            self._end(idempotent, None)

    async def forget(self, idempotent: IdempotentRequest, result: StoredResult) -> None:
        """Deletes a stored result whose images are lost, unless another request has done so.

        A result that is not stored yet has lost nothing; this returns once it is.
        """
        if result.encoded is not None:
            await self._release(idempotent, result.encoded)
        elif (storing := self._storing.get(idempotent.name)) is not None:
            await asyncio.wait({storing[1]})

    async def _start(
        self,
        work: Coroutine[Any, Any, None],
        settling: Settling,
        idempotent: IdempotentRequest | None = None,
        result: StoredResult | None = None,
    ) -> None:
        """Does `work` once the purchases are settled; waits for it only if they are.

        Meanwhile this worker answers the idempotency key with `result`.
        """

        async def after() -> None:
            if settling:
                await asyncio.wait(settling)
            await work

        task = self._tasks.start(after(), name="store idempotent result")
        if idempotent is not None and result is not None:
            name = idempotent.name
            self._storing[name] = result, task
            task.add_done_callback(lambda _: self._storing.pop(name, None))
        if all(settled.done() for settled in settling):
            await asyncio.wait({task}, timeout=STORE_WAIT_SECONDS)

    async def _release(self, idempotent: IdempotentRequest, expected: bytes) -> None:
        batch = Batch(self._store)
        batch.add(DeleteValue(SPACE, idempotent.name, expected))
        notify(batch, idempotent)
        # A lock that cannot be deleted expires by itself.
        with suppress(StoreUnavailable):
            await batch.execute()

    async def _store_free(self, idempotent: IdempotentRequest, value: bytes) -> bool:
        batch = Batch(self._store)
        # Also if the lock has expired, but not in place of another request's.
        stored = SetValue(
            SPACE,
            idempotent.name,
            value,
            RESULT_SECONDS,
            only_if_absent=True,
            expected=(encode_lock(idempotent),),
        )
        batch.add(stored)
        notify(batch, idempotent)
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

    async def _complete(self, idempotent: IdempotentRequest, value: bytes) -> None:
        """Stores the result of the whole answer, unless another request has the key by now."""
        # Mostly the settlement has stored the same result.
        is_stored = SetValue(SPACE, idempotent.name, value, RESULT_SECONDS, expected=(value,))
        while True:
            with suppress(StoreUnavailable):
                if await execute(self._store, is_stored):
                    return
                found = await execute(self._store, GetValue(SPACE, idempotent.name))
                if found is None or not is_of(found, idempotent):
                    return
                batch = Batch(self._store)
                is_set = set_result(batch, idempotent, value, found=found)
                await batch.execute()
                if is_set.value:
                    return
            await asyncio.sleep(RETRY_SECONDS)

    def _end(
        self, idempotent: IdempotentRequest, result: StoredResult | StoreUnavailable | None
    ) -> None:
        """Tells the requests of this worker that wait for the key."""
        wait = self._waits.pop(idempotent.name, None)
        if wait is not None:
            wait.end(result)


# ── values of a key ─────────────────────────────────────────────────────────────────────────


def set_result(
    batch: Batch, idempotent: IdempotentRequest, value: bytes, *, found: bytes | None
) -> Result[bool]:
    """Stores a result in place of the value that was found, if it is still the same."""
    is_set = batch.add(
        SetValue(
            SPACE,
            idempotent.name,
            value,
            RESULT_SECONDS,
            only_if_absent=found is None,
            expected=() if found is None else (found,),
        )
    )
    notify(batch, idempotent)
    return is_set


def is_of(value: bytes, idempotent: IdempotentRequest) -> bool:
    """Whether the value is a lock or a result of this very request."""
    found = decode_result(value)
    return found is not None and found.lock == idempotent.lock


def _channel(idempotent: IdempotentRequest) -> str:
    """The name under which the store notifies the watches of an idempotency key."""
    return f"{SPACE}:{idempotent.name}"


def notify(batch: Batch, idempotent: IdempotentRequest) -> None:
    """Wakes the requests that wait for the key."""
    batch.add(Notify(_channel(idempotent)))
