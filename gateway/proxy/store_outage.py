"""Answers while the store is unavailable: the cache is open, quotas are closed.

A worker buys one image once: those that it has bought meanwhile are in its memory.
"""

from __future__ import annotations

from gateway.access.keys import Keys
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.flight_result import FlightResult
from gateway.cache.flights import Buy, Flights
from gateway.cache.image_cache import LoadedImages
from gateway.proxy.context import RequestContext
from gateway.proxy.images import TAGS_LOST, Images, missing_from, purchase_record
from gateway.proxy.interpret import ImageQuery
from gateway.proxy.result import Answer
from gateway.purchasing.purchase import Purchases
from gateway.request.retirement import refuse_uncached


class StoreOutage:
    """Answers requests without the store.

    `ignores_limits` also lets keys with limits buy, uncounted.
    """

    def __init__(
        self,
        keys: Keys,
        images: Images,
        flights: Flights,
        purchases: Purchases,
        *,
        ignores_limits: bool,
    ) -> None:
        self._keys = keys
        self._images = images
        self._flights = flights
        self._purchases = purchases
        self._ignores_limits = ignores_limits

    def may_answer(self, context: RequestContext, query: ImageQuery) -> bool:
        """Whether this request may buy without the store.

        It may not if something was sent already, if its limits cannot be checked, or if only the
        store can answer it: a link, a cached image, a stored result.
        """
        needs_store = (
            query.request.response_format == "url"
            or (query.cache_policy.only_if_cached and not self._has_all(query))
            # Of a model that was shut down: what the store may have is all that there is.
            or not (query.buys or _bypasses(query) or self._has_all(query))
            or query.headers.dry_run
            or query.headers.idempotency_key is not None
        )
        is_limited = context.principal.is_limited and not self._ignores_limits
        is_trusted = self._keys.is_trusted_without_store(context.key)
        return is_trusted and not (is_limited or needs_store or context.purchase.has_begun)

    def _has_all(self, query: ImageQuery) -> bool:
        slots = query.request.slots
        return len(self._images.usable_unstored(query, slots)) == len(slots)

    async def answer(self, context: RequestContext, query: ImageQuery) -> Answer:
        """Answers from memory, and buys the rest; identical requests to this worker share it.

        Raises `GatewayError`.
        """
        self._keys.uses.mark(context.principal.key_id)
        policy = query.cache_policy
        context.is_reload = policy.no_cache
        unstored = self._images.usable_unstored(query, query.request.slots)
        cached = {slot: found.cached for slot, found in unstored.items()}
        images = await self._images.load(query, cached, unstored=unstored)
        missing = missing_from(query, images)
        result = FlightResult(missing=set())
        if not query.buys and not images:
            raise refuse_uncached(query.model)
        if missing and query.buys:
            buy = self._purchase_function(context, query, images)
            result = await self._run(context, query, missing, buy=buy)
            context.note_flights(result)
            images |= await self._images.load_result(query, result)
            cached |= result.cached
        if query.headers.tags and not context.purchase.has_begun:
            context.note(TAGS_LOST)  # those of a purchase are stored later
        return await self._images.serve(query, images, cached=cached, result=result)

    async def _run(
        self, context: RequestContext, query: ImageQuery, slots: tuple[int, ...], *, buy: Buy
    ) -> FlightResult:
        policy, subscriber = query.cache_policy, context.subscribe(query.request)
        if policy.no_cache or policy.no_store:
            return await self._flights.run_unshared(
                query.fingerprint, slots, buy=buy, subscriber=subscriber
            )
        return await self._flights.run_offline(
            query.fingerprint,
            slots,
            buy=buy,
            subscriber=subscriber,
            max_age_seconds=policy.max_age_seconds,
        )

    def _purchase_function(
        self, context: RequestContext, query: ImageQuery, images: LoadedImages
    ) -> Buy:
        """Buys the slots of a flight for this request, which has `images` already."""

        async def buy(flight: Flight) -> PurchasedImages:
            record = purchase_record(context, query, flight, images)
            order = self._images.order(context, query, record, images=len(flight.slots))
            return await self._purchases.buy_without_store(
                order, flight, is_stored=not query.cache_policy.no_store
            )

        return buy


def _bypasses(query: ImageQuery) -> bool:
    """Whether no cached image would do."""
    return query.cache_policy.no_cache or query.cache_policy.no_store
