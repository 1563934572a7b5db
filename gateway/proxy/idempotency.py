"""Answers requests with an `Idempotency-Key`: a repeated one gets the stored result."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.cache.entries import CachedImage, read_slot
from gateway.cache.idempotency_keys import MAX_FREE_RESULTS, IdempotencyKeys
from gateway.cache.idempotency_results import IdempotentRequest, StoredResult
from gateway.cache.image_cache import ImageCache
from gateway.errors import ErrorCode, InvalidRequest, UpstreamFailure
from gateway.images import Image
from gateway.proxy.context import RequestContext
from gateway.proxy.images import Images
from gateway.proxy.interpret import ImageQuery
from gateway.proxy.result import Answer
from gateway.request.headers import IDEMPOTENCY_KEY
from gateway.store.commands import Entry
from gateway.tasks import Capacity, OwnedTasks


class IdempotentImages:
    """Answers each idempotency key of a gateway key once."""

    def __init__(
        self,
        keys: IdempotencyKeys,
        images: Images,
        cache: ImageCache,
        tasks: OwnedTasks,
        *,
        waiting: Capacity,
    ) -> None:
        self._keys = keys
        self._images = images
        self._cache = cache
        self._tasks = tasks
        self._waiting = waiting

    async def answer(self, context: RequestContext, query: ImageQuery, entry: Entry) -> Answer:
        """The stored result, or a new answer, which is stored. Raises `GatewayError`."""
        request = query.request
        idempotent = IdempotentRequest.of(
            context.principal.key_id,
            query.headers.idempotency_key or "",
            request=(query.fingerprint, request.n, request.stream, request.response_format),
        )
        context.subscribe(request)  # it may wait for another answer as long as for a purchase
        while (stored := await self._acquire(idempotent)) is not None:
            if stored.request != idempotent.request:
                raise _key_reused()
            if (answer := await self._load_stored(context, query, stored)) is not None:
                return answer
            # An image of the stored result is lost, so this request is answered like a first one.
            await self._keys.forget(idempotent, stored)
        # In a task of its own: the result is stored even if the client leaves.
        work = self._answer_and_store(context, query, entry, idempotent=idempotent)
        return await self._tasks.run(work, name=f"answer {context.request_id}")

    async def _acquire(self, idempotent: IdempotentRequest) -> StoredResult | None:
        with self._waiting.taken():  # for another request with this key, if there is one
            return await self._keys.acquire(idempotent)

    async def _load_stored(
        self, context: RequestContext, query: ImageQuery, stored: StoredResult
    ) -> Answer | None:
        """The stored result, free of charge; None if the entry has lost one of its images."""
        if stored.failure is not None:
            context.is_stored_result = True
            # A copy, because all requests that waited have the same one.
            raise UpstreamFailure.from_dict(stored.failure.to_dict())
        cached = await self._still_cached(query.fingerprint, stored.images)
        if stored.encoded is None and len(cached) < len(stored.images):
            # The images are not stored yet either, but this worker may have their bytes.
            cached = {n: CachedImage(image, ttl_seconds=0) for n, image in stored.images.items()}
        images = await self._images.load(query, cached)
        if len(images) < len(stored.images):
            return None
        context.is_stored_result = True
        # In the order of the first answer: the images may have moved to other slots since.
        order = {image.id: position for position, image in stored.images.items()}
        answer = await self._images.serve(
            query,
            {order[image.id]: (image, data) for image, data in images.values()},
            cached={order[found.image.id]: found for found in cached.values()},
        )
        await self._images.tag(context, query)
        return answer

    async def _still_cached(
        self, fingerprint: str, images: Mapping[int, Image]
    ) -> dict[int, CachedImage]:
        """Those of the images that the entry has, by the slot that they are in now."""
        entry = await self._cache.entry(fingerprint)
        wanted = {image.id for image in images.values()}
        return {
            number: read_slot(slot, now=entry.now)
            for number, slot in entry.slots.items()
            if slot.image_id in wanted
        }

    async def _answer_and_store(
        self,
        context: RequestContext,
        query: ImageQuery,
        entry: Entry,
        *,
        idempotent: IdempotentRequest,
    ) -> Answer:
        context.idempotent, settling = idempotent, context.purchase.settling
        try:
            async with self._keys.renewing(idempotent):
                answer = await self._images.answer(context, query, entry)
        except UpstreamFailure as failure:
            # Only a leader is charged. A follower was not, so a retry may buy.
            if failure.is_charged and context.purchase.has_begun:
                await self._keys.store_failure(idempotent, failure, settling=settling)
            else:
                await self._keys.release(idempotent, settling=settling)
            raise
        except BaseException:
            await self._keys.release(idempotent, settling=settling)
            raise
        images = [image for image, _ in answer.images]
        # A purchase must not be repeated. Anything else can be, at the price of nothing.
        is_free = not context.purchase.has_begun
        stored = self._keys.store(idempotent, images, is_free=is_free, settling=settling)
        if not await stored:
            context.note(
                f"{IDEMPOTENCY_KEY} not stored: this request cost nothing, and the key has "
                f"{MAX_FREE_RESULTS} stored results of such requests"
            )
        return answer


def _key_reused() -> InvalidRequest:
    return InvalidRequest(
        "This Idempotency-Key was sent before with another request. Use a new key for each "
        "request.",
        param=IDEMPOTENCY_KEY,
        code=ErrorCode.IDEMPOTENCY_KEY_REUSED,
    )
