"""Buys while the store is unavailable: the cache is open, quotas are closed."""

from __future__ import annotations

from gateway.access.keys import Keys
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.cache.flights import Flights
from gateway.proxy.context import RequestContext
from gateway.proxy.images import TAGS_LOST, Images
from gateway.proxy.interpret import ImageQuery
from gateway.proxy.result import Answer
from gateway.purchasing.purchase import Purchases


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
            or query.cache_policy.only_if_cached
            or query.headers.dry_run
            or query.headers.idempotency_key is not None
        )
        is_limited = bool(context.subject.limits) and not self._ignores_limits
        is_trusted = self._keys.is_trusted_without_store(context.key)
        return is_trusted and not (is_limited or needs_store or context.purchase.has_begun)

    async def answer(self, context: RequestContext, query: ImageQuery) -> Answer:
        """Buys; identical requests to this worker share the purchase. Raises `GatewayError`."""
        policy = query.cache_policy
        context.is_reload = policy.no_cache

        async def buy(flight: Flight) -> PurchasedImages:
            record = context.record.but(outcome="bought")
            order = self._images.order(context, query, record, images=len(flight.slots))
            return await self._purchases.buy_without_store(
                order, flight, is_stored=not policy.no_store
            )

        is_unshared = policy.no_cache or policy.no_store
        run = self._flights.run_unshared if is_unshared else self._flights.run_offline
        result = await run(
            query.fingerprint,
            tuple(query.request.slots),
            buy=buy,
            subscriber=context.subscribe(query.request),
        )
        context.is_follower = result.is_follower
        images = await self._images.load_result(query, result)
        if query.headers.tags and result.is_follower:  # those of the leader are stored later
            context.notices.append(TAGS_LOST)
        return await self._images.serve(query, images, cached={}, result=result)
